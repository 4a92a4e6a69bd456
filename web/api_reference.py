"""The API's reference, from its own OpenAPI document: no script from elsewhere, readable offline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    summary: str
    #: query parameters: (name, what it means)
    parameters: tuple[tuple[str, str], ...]
    #: name of the body's schema, "" where there is no body
    body: str


@dataclass(frozen=True, slots=True)
class Group:
    """The operations of one noun."""

    name: str
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Schema:
    """A body that a POST takes."""

    name: str
    description: str
    definition: dict[str, Any]


def api_groups(document: dict[str, Any]) -> tuple[Group, ...]:
    """The operations by tag, in the document's order."""
    groups: dict[str, list[Operation]] = {}
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                operation = item[method]
                groups.setdefault(operation.get("tags", ["other"])[0], []).append(_operation(method, path, operation))
    return tuple(Group(name, tuple(operations)) for name, operations in groups.items())


def body_schemas(document: dict[str, Any], groups: tuple[Group, ...]) -> tuple[Schema, ...]:
    """The bodies that the operations take, by name."""
    wanted = sorted({operation.body for group in groups for operation in group.operations if operation.body})
    known = document.get("components", {}).get("schemas", {})
    return tuple(Schema(name, known[name].get("description", ""), known[name]) for name in wanted if name in known)


def _operation(method: str, path: str, operation: dict[str, Any]) -> Operation:
    query = [p for p in operation.get("parameters", []) if p["in"] == "query"]
    return Operation(
        method=method.upper(),
        path=path,
        summary=operation.get("summary", ""),
        parameters=tuple((p["name"], p.get("description", "")) for p in query),
        body=_body(operation),
    )


def _body(operation: dict[str, Any]) -> str:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        reference = str(content.get("schema", {}).get("$ref", ""))
        if reference:
            return reference.rsplit("/", 1)[-1]
    return ""
