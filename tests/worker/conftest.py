"""The worker on real databases, its work done by this process; the fixtures are shared with tests/faults."""

from __future__ import annotations

import pytest

from tests.service_fixtures import (
    calibration_id,
    deep_model,
    grid,
    model_id,
    s3,
    service,
    text_path,
    tiny_model,
)
from tests.worker.hands import Hands

__all__ = [
    "calibration_id",
    "deep_model",
    "grid",
    "model_id",
    "s3",
    "service",
    "text_path",
    "tiny_model",
]


@pytest.fixture(scope="module")
def make_service() -> type[Hands]:
    """Modules whose tests want real processes say so."""
    return Hands
