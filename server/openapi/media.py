"""Examples of answers that are no JSON object of a schema, by operation and media type."""

from __future__ import annotations

from typing import Any

_EVENTS = 'id: 17\nevent: state\ndata: {"id":17,"job_id":"job_0192f3a4b5c9f1e2d3c4b5a","state":"running"}\n\n'

#: of two matrices and two configs; ``bitbudget verify`` accepts it
_CERTIFICATE: dict[str, Any] = {
    "certificate": "bitbudget allocation",
    "version": 1,
    "about": {"model": "demo/model", "allocation_id": "alloc_1"},
    "numerics_version": 3,
    "budget": 700,
    "total_bytes": 640,
    "objective": 1.5,
    "lower_bound": 1.3828125,
    "gap": 0.1171875,
    "optimal": True,
    "proof": "core exhausted",
    "tolerance": 3.469446951953614e-18,
    "shadow_price": 0.001953125,
    "multiplier": 0.001953125,
    "constraints": None,
    "max_configs": None,
    "files": None,
    "matrices": ["0.q", "0.down"],
    "choice": [0, 1],
    "members": [0, 1],
    "components": [0, 1],
    "labels": [0, 0],
    "prices": [[1.0], [1.75]],
    "allowed": ["11", "11"],
    "shapes": [[32, 32], [32, 32]],
    "menu": [
        {"b_q": b, "rank": 0, "factor_bits": 4, "codebook": "trellis", "seed": 0, "iterations": 2, "states": 1024}
        for b in (2, 3)
    ],
    "weights": [1.0, 2.0],
    "errors": [[0.5, 0.25], [1.0, 0.5]],
    "nbytes": [[256, 384], [256, 384]],
    "problem_hash": "0716ba303a42310470e6bf5b3d0258f252ef96a3fbd5270bc30ec3adbd07f509",
    "digest": "be2d0bd2ffeb857ac8809d4c5fd22f6b836d2ac2f0bc77f42fdd1be4098ecb3f",
}

_TEXT: dict[str, Any] = {"type": "string"}
_BYTES: dict[str, Any] = {"type": "string", "format": "binary"}
_EVENT_STREAM = {"text/event-stream": {"schema": _TEXT, "example": _EVENTS}}
_FILE = {
    "application/x-ndjson": {
        "schema": _TEXT,
        "example": '{"schema":{"export":"measurements","format_version":1}}\n{"id":1,"projection":"down"}\n',
    },
    "text/csv": {"schema": _TEXT, "example": "id,projection\n1,down\n"},
    # no example of a binary file can stand in JSON: the magic bytes at its two ends
    "application/vnd.apache.parquet": {"schema": _BYTES, "example": "PAR1…PAR1"},
}

#: operation → what its 200 contains
MEDIA: dict[str, dict[str, dict[str, Any]]] = {
    "follow_all": _EVENT_STREAM,
    "follow_job": _EVENT_STREAM,
    "follow_study": _EVENT_STREAM,
    "get_overrides": {
        "application/yaml": {"schema": _TEXT, "example": "version: 1\nmatrices:\n  0.q: {b_q: 2, rank: 64}\n"}
    },
    "get_certificate": {"application/json": {"schema": {"type": "object"}, "example": _CERTIFICATE}},
    "export_rows": _FILE,
    "export_measurements": _FILE,
    "metrics": {"text/plain": {"schema": _TEXT, "example": 'bitbudget_jobs{kind="sweep",state="running"} 1.0\n'}},
}
