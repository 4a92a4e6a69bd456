"""The OpenAPI document: FastAPI's own, with what holds for every route written into it once."""

from __future__ import annotations

from typing import Any

from server.kit.problem import MEDIA_TYPE
from server.kit.problems import PROBLEMS, ProblemKind
from server.openapi.bodies import BODIES
from server.openapi.examples import example_of
from server.openapi.tags import TAGS
from server.security.scopes import needed_scope

DESCRIPTION = (
    "Errors are problem+json (RFC 9457), POSTs honour Idempotency-Key, lists are keyset pages that can be sorted and "
    "filtered. Every answer carries its trace id in X-Trace-Id."
)
_METHODS = ("get", "post", "put", "patch", "delete")
#: any request may meet these
_ALWAYS = (400, 401, 403, 500, 503)
_EVENTS = 'id: 17\nevent: state\ndata: {"id":17,"job_id":"job_0192f3a4b5c9f1e2d3c4b5a","state":"running"}\n\n'
#: operations that answer something else than JSON: (media type, example)
_TEXTS: dict[str, tuple[str, str]] = {
    "follow_all": ("text/event-stream", _EVENTS),
    "follow_job": ("text/event-stream", _EVENTS),
    "follow_study": ("text/event-stream", _EVENTS),
    "get_overrides": ("application/yaml", "version: 1\nmatrices:\n  0.q: {b_q: 2, rank: 64}\n"),
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
    if method == "post":
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
    for status in _problems(method, path, operation):
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
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        if media_type == "application/json" and not ({"example", "examples"} & content.keys()):
            given = BODIES.get(operation["operationId"])
            content["example"] = example_of(content["schema"], schemas) if given is None else given
        elif media_type == "application/yaml":
            content["example"] = BODIES[operation["operationId"]]["config"]


def _answers(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    responses = operation["responses"]
    # FastAPI's own idea of a refusal, and of a 200 where another success is declared
    if "$ref" in responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {}):
        del responses["422"]
    if operation["operationId"] in _TEXTS:
        media_type, text = _TEXTS[operation["operationId"]]
        responses["200"]["content"] = {media_type: {"schema": {"type": "string"}, "example": text}}
    for status, response in responses.items():
        for media_type, content in response.get("content", {}).items():
            known = content.get("schema")
            if status.startswith("2") and media_type == "application/json" and known and "example" not in content:
                content["example"] = example_of(known, schemas)


def _problems(method: str, path: str, operation: dict[str, Any]) -> list[int]:
    """Statuses that this operation may refuse with: by rule, so that none is forgotten."""
    found = set(_ALWAYS)
    if "{" in path or "/events" in path:
        found.add(404)
    if method != "get":
        found |= {409, 413, 422}
    if "requestBody" in operation:
        found |= {415}
    if operation.get("parameters"):
        found.add(422)
    if "/exports" in path or path.endswith("/measurements/export"):
        found |= {404, 501}
    if "/sql" in path and method == "post":
        found.add(429)
    return sorted(found)


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
