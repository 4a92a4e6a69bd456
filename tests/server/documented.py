"""Whether answers are what the OpenAPI document tells of: their status, their media type, their fields."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.testclient import TestClient

_API = "/api/v1/"


def check_answer(app: FastAPI, answer: httpx.Response) -> None:
    """Whether the document of the application tells of this answer. What no operation answered is let pass.

    Raises:
        AssertionError: it does not; the tests that asked say what it is about.
    """
    method, path = answer.request.method, answer.request.url.path
    if not path.startswith(_API):
        return
    document = app.openapi()
    operation = _operation(document, method.lower(), path)
    if operation is None:
        return
    told = operation["responses"].get(str(answer.status_code))
    assert told is not None, f"no {answer.status_code} is documented of {method} {path}"
    if "$ref" in told:
        told = document["components"]["responses"][told["$ref"].rsplit("/", 1)[-1]]
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    assert media_type in told.get("content", {"": {}}), (
        f"no {media_type} is documented of a {answer.status_code} of {method} {path}"
    )


def _operation(document: dict[str, Any], method: str, path: str) -> dict[str, Any] | None:
    exact = document["paths"].get(path, {})
    if method in exact:
        return dict(exact[method])
    for template, item in document["paths"].items():
        if method in item and _pattern(template).fullmatch(path):
            return dict(item[method])
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{[a-z_]+\}", "[^/]+", template))


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
