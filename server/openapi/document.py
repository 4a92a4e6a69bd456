"""The OpenAPI document: FastAPI's own, with what holds for every route written into it once."""

from __future__ import annotations

from typing import Any

from server.kit.problem import MEDIA_TYPE
from server.kit.problems import PROBLEMS, ProblemKind
from server.openapi.bodies import BODIES
from server.openapi.examples import example_of
from server.openapi.media import MEDIA
from server.openapi.tags import TAGS
from server.security.scopes import needed_scope, only_reads

DESCRIPTION = (
    "Errors are problem+json (RFC 9457), POSTs that change something honour Idempotency-Key, lists are keyset pages "
    "that can be sorted and filtered. Every answer carries its trace id in X-Trace-Id."
)
_METHODS = ("get", "post", "put", "patch", "delete")
#: any request may meet these; 422 for a parameter that no route knows
_ALWAYS = (400, 401, 403, 422, 500, 503)
#: a body may be too slow, too large, of a wrong type
_BODY = (408, 413, 415)
#: what no rule below finds
_ALSO: dict[str, tuple[int, ...]] = {
    "compare_two": (404,),
    "follow_all": (404,),
    "get_certificate": (409,),
    "get_frontier": (409,),
    "get_what_if": (409,),
    "export_rows": (501,),
    "export_measurements": (501,),
    "run_sql": (429,),
    "run_canned_query": (429,),
}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """The document with tags, problems, scopes and examples; changed in place."""
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for replaced in ("HTTPValidationError", "ValidationError"):
        schemas.pop(replaced, None)
    for schema in schemas.values():
        _restore_nulls(schema)
    schemas["Problem"] = _problem_schema()
    components["responses"] = {f"Problem{status}": _problem_response(status) for status in _statuses()}
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "a token of `bitbudget tokens create`"}
    }
    # on this machine no token is asked for, unless BITBUDGET_REQUIRE_TOKEN says so
    document["security"] = [{"token": []}, {}]
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                _operation(method, path, item[method], schemas)
    return document


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    scope = needed_scope(method.upper(), path)
    operation["x-scope"] = None if scope is None else scope.value
    if scope is None:
        operation["security"] = []
    if method == "post" and not only_reads(method.upper(), path):
        operation.setdefault("parameters", []).append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "1 to 255 characters; the same request sent again under it is done once, for 24 hours",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            }
        )
    _body(operation, schemas)
    _answers(operation, schemas)
    for status in _problems(method, path, operation, schemas):
        operation["responses"].setdefault(str(status), {"$ref": f"#/components/responses/Problem{status}"})


def _restore_nulls(schema: dict[str, Any]) -> None:
    """FastAPI leaves out whatever is None, in examples too: there null was meant."""
    properties = schema.get("properties", {})
    nullable = [name for name in schema.get("required", []) if {"type": "null"} in properties[name].get("anyOf", [])]
    for example in schema.get("examples", []):
        if isinstance(example, dict):
            for name in nullable:
                example.setdefault(name, None)


def _body(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    _hoist(operation, schemas)
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        if media_type == "application/json" and not ({"example", "examples"} & content.keys()):
            given = BODIES.get(operation["operationId"])
            content["example"] = example_of(content["schema"], schemas) if given is None else given
        elif media_type == "application/yaml":
            content["example"] = BODIES[operation["operationId"]]["config"]


def _hoist(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Schemas of bodies that a route reads itself go where FastAPI puts its own: references lead there.

    Raises:
        ValueError: another schema has the name.
    """
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        if "$defs" not in schema:
            continue
        found = schema.pop("$defs") | {schema["title"]: schema}
        for name, definition in found.items():
            if schemas.setdefault(name, definition) != definition:
                raise ValueError(f"{operation['operationId']}: two schemas are called {name}: rename one")
        content["schema"] = {"$ref": f"#/components/schemas/{schema['title']}"}


def _answers(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    responses = operation["responses"]
    # FastAPI's own idea of a refusal, and of a 200 where another success is declared
    if "$ref" in responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {}):
        del responses["422"]
    if operation["operationId"] in MEDIA:
        responses["200"]["content"] = MEDIA[operation["operationId"]]
    for status, response in responses.items():
        for media_type, content in response.get("content", {}).items():
            known = content.get("schema")
            if status.startswith("2") and media_type == "application/json" and known and "example" not in content:
                content["example"] = example_of(known, schemas)


def _problems(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> list[int]:
    """Statuses that this operation may refuse with: by rule, so that none is forgotten."""
    found = {*_ALWAYS, *_ALSO.get(operation["operationId"], ())}
    if "{" in path or _names_rows(operation, schemas):
        found.add(404)
    if method != "get":
        found |= {*_BODY}
        if not only_reads(method.upper(), path):
            found.add(409)
    return sorted(found)


def _names_rows(operation: dict[str, Any], schemas: dict[str, Any]) -> bool:
    """Whether the body must name a row by its id; one whose ids are all optional takes them for filters."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        body = schemas[schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else schema
        if any(name.endswith(("_id", "_ids")) for name in body.get("required", ())):
            return True
    return False


def _statuses() -> list[int]:
    return sorted({status for kind in PROBLEMS.values() for status in kind.statuses})


def _problem_response(status: int) -> dict[str, Any]:
    kinds = [kind for kind in PROBLEMS.values() if status in kind.statuses]
    return {
        "description": " ".join(kind.meaning for kind in kinds[:1]) if len(kinds) == 1 else "One of several problems.",
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "examples": {kind.slug: {"summary": kind.meaning, "value": _example(kind, status)} for kind in kinds},
            }
        },
    }


def _example(kind: ProblemKind, status: int) -> dict[str, Any]:
    example = {
        "type": kind.type,
        "title": kind.title,
        "status": status,
        "detail": f"{kind.meaning} {kind.cure}",
        "trace_id": "7f1c0d6b2a904d6f8e0b3c5a9d1e2f34",
    }
    if kind.slug == "invalid-request":
        example["errors"] = [{"field": "limit", "message": "Input should be less than or equal to 1000, not 5000"}]
    return example


def _problem_schema() -> dict[str, Any]:
    text = {"type": "string"}
    error = {
        "type": "object",
        "required": ["field", "message"],
        "properties": {"field": text, "message": text, "code": text},
    }
    return {
        "title": "Problem",
        "description": "RFC 9457. `type` never changes its meaning; GET /api/v1/problems lists all.",
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri", "enum": [kind.type for kind in PROBLEMS.values()]},
            "title": text,
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "names the thing and the cure"},
            "trace_id": {"type": "string", "description": "the log's lines about this request have it"},
            "errors": {"type": "array", "items": error, "description": "of a 422: each field that is wrong"},
            "retryable": {"type": "boolean", "description": "whether the same request may succeed later"},
        },
        "additionalProperties": True,
    }
