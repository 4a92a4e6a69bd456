"""A few random schedules at every test run; ``make faults`` runs many more (tests/faults/test_schedules.py)."""

from __future__ import annotations

from results_db import Database
from tests.results_db.schedules import run_schedules


def test_random_schedules(database: Database) -> None:
    tally = run_schedules(database, 12)
    assert tally["schedules"] >= 12
    # they are schedules worth the name
    assert min(tally[what] for what in ("claims", "fenced", "refused", "flush", "shuffle", "double")) > 5, tally
