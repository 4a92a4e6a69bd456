"""An example of an answer from its schema: what a field's name and type tell, the same at every start."""

from __future__ import annotations

from typing import Any

_ID = "0192f3a4b5c9f1e2d3c4b5a"
_TIME = "2026-03-04T05:06:07.890123Z"

#: by field name: what a reader of the example should see
_BY_NAME: dict[str, Any] = {
    "layer_idx": 3,
    "projection": "down",
    "expert_idx": -1,
    "b_q": 2,
    "rank": 64,
    "codebook": "e8",
    "seed": 0,
    "split": "select",
    "dataset": "stdlib",
    "task": "perplexity",
    "metric": "ppl",
    "device_kind": "cuda",
    "device": "RTX 3090",
    "hostname": "box",
    "kind": "sweep",
    "state": "succeeded",
    "step": "sweep",
    "phase": 1,
    "name": "optimal",
    "scope": "decoder",
    "objective": "kl",
    "verdict": "GO",
    "method": "kl_anchor",
    "source": "demo/model",
    "next": None,
    "stale_at": None,
    "stale_reason": None,
    "error": None,
    "detail": None,
    "problem": None,
}
_DEEPEST = 6


def example_of(schema: dict[str, Any], schemas: dict[str, Any], name: str = "", depth: int = 0) -> Any:
    """A value that the schema allows.

    Args:
        schemas: components/schemas of the document, which references name.
    """
    schema = _resolved(schema, schemas)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for given in (schema.get("examples") or [])[:1]:
        return given
    if "enum" in schema:
        named = _BY_NAME.get(name)
        return named if named in schema["enum"] else schema["enum"][0]
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return _choice(choices, schemas, name, depth)
    types = schema.get("type")
    if name in _BY_NAME and _allows(types, _BY_NAME[name]):
        return _BY_NAME[name]
    match types:
        case "object":
            return _object(schema, schemas, depth)
        case "array":
            items = schema.get("items", {})
            few = depth >= _DEEPEST or not items
            return [] if few else [example_of(items, schemas, name.removesuffix("s"), depth + 1)]
        case "integer":
            return int(max(schema.get("minimum", 1), 1))
        case "number":
            return 0.25
        case "boolean":
            return True
        case "null":
            return None
        case "string":
            return _text(schema, name)
    return {}


def _object(schema: dict[str, Any], schemas: dict[str, Any], depth: int) -> dict[str, Any]:
    if depth >= _DEEPEST:
        return {}
    return {key: example_of(inner, schemas, key, depth + 1) for key, inner in schema.get("properties", {}).items()}


def _choice(choices: list[dict[str, Any]], schemas: dict[str, Any], name: str, depth: int) -> Any:
    """The first choice; null where the name says so and it may be."""
    kinds = [_resolved(choice, schemas) for choice in choices]
    if any(kind.get("type") == "null" for kind in kinds) and name in _BY_NAME and _BY_NAME[name] is None:
        return None
    return example_of(next(kind for kind in kinds if kind.get("type") != "null"), schemas, name, depth)


def _text(schema: dict[str, Any], name: str) -> str:
    if schema.get("format") == "date-time" or name.endswith("_at"):
        return _TIME
    if name == "id":
        return f"row_{_ID}"
    if name.endswith("_id"):
        return f"{name.removesuffix('_id')}_{_ID}"
    if name.endswith("hash") or name == "fingerprint":
        return "9f86d081884c7d65"
    return name.replace("_", " ") or "text"


def _allows(types: Any, value: Any) -> bool:
    kinds: dict[Any, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "null": (type(None),),
    }
    return types in kinds and isinstance(value, kinds[types])


def _resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = schemas[schema["$ref"].rsplit("/", 1)[-1]]
    return schema
