"""A thousand random schedules on SQLite and two hundred on PostgreSQL, other ones than `make test` runs.

They kill nothing real: see tests/results_db/schedules.py for what happens in them and what must hold.
``BITBUDGET_SCHEDULES`` multiplies their number, ``BITBUDGET_SCHEDULES_SEED`` chooses others.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from results_db import Database
from tests.results_db.schedules import run_schedules

TIMES = int(os.environ.get("BITBUDGET_SCHEDULES", "1"))
SEED = int(os.environ.get("BITBUDGET_SCHEDULES_SEED", "0"))
#: schedules a test, so that each stays below its time limit and processes can share them
EACH = 125
STEPS = 50
CHUNKS = [("sqlite", n) for n in range(8 * TIMES)] + [("postgresql", n) for n in range(2 * TIMES)]


@pytest.mark.parametrize(
    ("database_backend", "chunk"), CHUNKS, indirect=["database_backend"], ids=[f"{b}-{n}" for b, n in CHUNKS]
)
def test_random_schedules(database: Database, chunk: int, request: pytest.FixtureRequest) -> None:
    tally = run_schedules(database, EACH, steps=STEPS, chosen_by=1000 * SEED + chunk)
    assert tally["schedules"] >= EACH
    _report(request, tally)


def _report(request: pytest.FixtureRequest, tally: Counter[str]) -> None:
    """How much was tried: in the report's properties, and on the terminal where one process runs everything."""
    for what, n in tally.items():
        request.node.user_properties.append((what, n))
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        terminal.write_line(f" {request.node.name}: {dict(tally)}")
