"""Real workers on real databases: the fixtures are shared with tests/faults."""

from __future__ import annotations

from tests.service_fixtures import (
    calibration_id,
    deep_model,
    grid,
    make_service,
    model_id,
    s3,
    service,
    text_path,
    tiny_model,
)

__all__ = [
    "calibration_id",
    "deep_model",
    "grid",
    "make_service",
    "model_id",
    "s3",
    "service",
    "text_path",
    "tiny_model",
]
