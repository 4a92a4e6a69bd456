"""A study's config in a request's body: within JSON, or as YAML alone."""

from __future__ import annotations

from typing import Any, TypeVar

from anyio import to_thread
from fastapi import Request
from pydantic import BaseModel, ValidationError

from compress_core.strict_yaml import load_yaml
from server.kit.problem import Problem, invalid, validation_problem
from server.security.body import YAML_TYPES

_MAX_BYTES = 1_000_000
#: reading YAML takes 50 µs a byte
_MAX_YAML_BYTES = 100_000

#: the section of a JSON body that holds the config
SECTION = "config"

#: where the OpenAPI document has its schemas
REFERENCE = "#/components/schemas/{model}"

Body = TypeVar("Body", bound=BaseModel)


async def read_study(request: Request, model: type[Body]) -> Body:
    """The body as ``model``, whose field ``config`` a YAML body fills alone.

    Raises:
        Problem: too-large, invalid-yaml, or what the config says that it may not.
    """
    body = await request.body()
    if len(body) > _MAX_BYTES:
        raise Problem(413, "too-large", f"a study's config has at most {_MAX_BYTES:,} bytes")
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    try:
        if media_type in YAML_TYPES:
            if len(body) > _MAX_YAML_BYTES:
                raise Problem(413, "too-large", f"a study's config as YAML has at most {_MAX_YAML_BYTES:,} bytes")
            # not on the event loop: everybody else would wait
            return model.model_validate({SECTION: await to_thread.run_sync(_mapping, body)})
        return model.model_validate_json(body)
    except ValidationError as error:
        raise validation_problem(_without_section(error.errors())) from error


def openapi_body(model: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI document says of such a body."""
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": model.model_json_schema(ref_template=REFERENCE)},
                "application/yaml": {"schema": {"type": "object"}},
            },
        }
    }


def _mapping(body: bytes) -> dict[str, Any]:
    try:
        value = load_yaml(body)
    except Exception as error:  # PyYAML's constructors also raise ValueError, KeyError, RecursionError, …
        raise Problem(422, "invalid-yaml", f"the body is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise invalid("", "the body must be a mapping: a study's config")
    return value


def _without_section(errors: Any) -> list[Any]:
    """Fields as the YAML has them: without the ``config`` that JSON puts around."""
    return [dict(e) | {"loc": e["loc"][1:] if e["loc"][:1] == (SECTION,) else e["loc"]} for e in errors]
