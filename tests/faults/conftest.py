"""Faults: real workers, servers, databases and Redis that are killed, frozen, starved and cut off.

``make faults`` runs them all, ``make test`` none, and continuous integration those marked ``representative``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service_fixtures import calibration_id, deep_model, grid, model_id, s3, service, text_path, tiny_model

__all__ = ["calibration_id", "deep_model", "grid", "model_id", "s3", "service", "text_path", "tiny_model"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.faults)
