"""Faults: real workers, servers, databases and Redis that are killed, frozen, starved and cut off.

``make faults`` runs them all, ``make test`` none, and continuous integration those marked ``representative``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results_db.states import JobKind
from tests.faults.misbehaving import ACTS, PROGRAM
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

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def worker_with(service: Any) -> Callable[..., None]:
    """``worker_with(BITBUDGET_…="…")``: the only live worker has these variables, and listens."""

    def start(**environment: str) -> None:
        for worker in service.workers:
            worker.kill()
            worker.wait()
        seen = service.logs().count("listens on queue")
        service.start_worker(**environment)
        service.wait(lambda: service.logs().count("listens on queue") > seen, "a worker that listens")

    return start


@pytest.fixture
def plan_acts(service: Any) -> Callable[..., None]:
    """``plan_acts(act, …)``: the acts of the attempts to come, and a live worker that plays them."""

    def plan(*acts: str) -> None:
        (service.folder / ACTS).write_text("\n".join(acts))
        for worker in service.workers:
            if worker.poll() is None and PROGRAM not in worker.args:
                worker.kill()
                worker.wait()
        if service.workers[-1:] == [] or service.workers[-1].poll() is not None:
            service.start_worker(program=PROGRAM)

    return plan


@pytest.fixture
def misbehave(service: Any, plan_acts: Callable[..., None]) -> Callable[..., str]:
    """``misbehave(act, …)``: the id of a job whose attempts do these acts in turn, then none."""

    def submit(*acts: str, **options: Any) -> str:
        plan_acts(*acts)
        return str(service.submit(JobKind.PROBE, {}, **options))

    return submit
