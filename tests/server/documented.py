"""Whether answers have exactly the fields that the OpenAPI document tells of."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient


def undocumented(client: TestClient) -> list[str]:
    """Where answers and their schemas differ: every list, and the address of the first row of each."""
    document = client.get("/openapi.json").json()
    gets = {path: item["get"] for path, item in document["paths"].items() if "get" in item}
    found: list[str] = []
    for path, operation in gets.items():
        schema = operation["responses"]["200"].get("content", {}).get("application/json", {}).get("schema")
        if schema is None or path.endswith("/compare"):
            continue
        folder, _, name = path.partition("/{")
        if not name:
            found += [f"{path} {where}" for where in _differences(document, schema, client.get(path).json())]
        elif name.endswith("}") and "/" not in name:
            rows = client.get(folder).json()["items"]
            address = f"{folder}/{rows[0].get('id') or rows[0].get('slug')}" if rows else None
            if address is not None:
                found += [f"{path} {where}" for where in _differences(document, schema, client.get(address).json())]
    return found


def _differences(document: dict[str, Any], schema: dict[str, Any], value: Any, where: str = "") -> list[str]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    if value is not None and "anyOf" in schema:
        return _differences(
            document, next(each for each in schema["anyOf"] if each.get("type") != "null"), value, where
        )
    if isinstance(value, list) and value:
        return _differences(document, schema["items"], value[0], f"{where}[]")
    if not isinstance(value, dict) or "properties" not in schema:
        return []
    told = schema["properties"]
    found = [f"{where}.{name}" for name in value.keys() ^ told.keys()]
    for name in value.keys() & told.keys():
        found += _differences(document, told[name], value[name], f"{where}.{name}")
    return found
