"""Example bodies of the requests whose schemas bring none, by operation."""

from __future__ import annotations

from typing import Any

MODEL = "model_0192f3a4b5c0a1b2c3d4e5f"
CALIBRATION = "cal_0192f3a4b5c9f1e2d3c4b5a"
ALLOCATION = "alloc_0192f3a4b5d4b7a6f0e1d2c"
_GRID = [{"b_q": b, "rank": r} for b in (2, 3) for r in (0, 64)]

_STUDY: dict[str, Any] = {
    "name": "tiny",
    "model": {"source": "demo/model"},
    "grid": {"b_q": [2, 3, 4], "rank": [0, 8, 16]},
    "budgets": [{"uniform": {"b_q": 3, "rank": 8}}],
}

BODIES: dict[str, dict[str, Any]] = {
    "create_calibration": {"model_id": MODEL, "text": {"kind": "stdlib"}, "windows": {"length": 256, "count": 64}},
    "create_sensitivity": {"model_id": MODEL, "anchors": [_GRID[0], _GRID[-1]]},
    "create_sweep": {"model_id": MODEL, "configs": _GRID, "matrices": {"projections": ["q", "down"]}},
    "create_fit": {"model_id": MODEL, "calibration_id": CALIBRATION, "form": "auto"},
    "create_compression": {"model_id": MODEL, "allocation_id": ALLOCATION},
    "create_evaluation": {"model_id": MODEL, "text": {"kind": "stdlib"}, "split": "report", "windows": {"count": 64}},
    "create_validation": {
        "model_id": MODEL,
        "name": "choice",
        "allocation_ids": [ALLOCATION],
        "windows": {"count": 32},
    },
    "create_probe": {"seconds": 30},
    "create_study": {"config": _STUDY},
    "create_plan": {"config": _STUDY, "device": "RTX 3090"},
    "pause_queue": {"reason": "the card is needed for a demonstration"},
}
