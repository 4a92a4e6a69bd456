"""Migration 0004 carries the rows of the tables that it renames, up and down, and ids go on where they were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import inspect, text

from results_db import Database
from results_db.migrate import downgrade, upgrade

NOW = "2026-01-01 00:00:00+00:00"
HASH = {"numerics_version": 1, "device_kind": "cpu", "token_hash": "t", "text": "{}", "seconds": 1.0}
MATRIX = {"layer_idx": 0, "projection": "q_proj", "expert_idx": -1}
ROWS: dict[str, list[dict[str, Any]]] = {
    "models": [{"id": "mod_1", "name": "m", "source": "s", "matrices": "[]", "config": "{}"}],
    "jobs": [
        {
            "id": "job_1",
            "kind": "sweep",
            "state": "succeeded",
            "position": 0,
            "params": "{}",
            "inputs": "{}",
            "depends_on": "[]",
            "run_when": "succeeded",
            "priority": 0,
            "max_attempts": 3,
            "cancel_requested": False,
            "pause_requested": False,
        }
    ],
    "attempts": [{"id": "att_1", "job_id": "job_1", "number": 1, "state": "succeeded"}],
    "artefacts": [{"id": "art_1", "kind": "calibration", "uri": "u", "nbytes": 1, "details": "{}"}],
    "calibrations": [
        HASH
        | {
            "id": "cal_1",
            "model_id": "mod_1",
            "artefact_id": "art_1",
            "content_hash": "c",
            "n_samples": 1,
            "sample_length": 8,
            "n_tokens": 8,
            "seed": 0,
        }
    ],
    "allocations": [
        {
            "id": "alloc_1",
            "model_id": "mod_1",
            "name": "optimal",
            "kind": "optimal",
            "scope": "decoder",
            "matrix_bytes": 1,
            "fixed_bytes": 0,
            "total_bytes": 1,
            "bits_per_weight": 2.0,
            "n_distinct_configs": 1,
            "content_hash": "h",
            "overrides_yaml": "",
            "details": "{}",
            "seconds": 1.0,
        }
    ],
    "fits": [
        {
            "id": "fit_1",
            "model_id": "mod_1",
            "calibration_id": "cal_1",
            "form": "additive",
            "metric": "e",
            "codebook": "lattice",
            "n_observations": 1,
            "r2": 1.0,
            "r2_log": 1.0,
            "r2_by_projection": "{}",
            "r2_by_group": "{}",
            "checks": "{}",
            "residuals": "[]",
            "seconds": 1.0,
        }
    ],
    "sensitivities": [
        HASH
        | MATRIX
        | {
            "id": 41,
            "model_id": "mod_1",
            "calibration_id": "cal_1",
            "job_id": "job_1",
            "attempt_id": "att_1",
            "method": "kl_anchor",
            "anchor_config_hash": "a",
            "anchor_config": '{"b_q": 2}',
            "anchor_error": 0.5,
            "kl": 0.25,
            "kl_se": 0.01,
            "sensitivity": 0.5,
            "n_sequences": 4,
            "n_tokens": 32,
        }
    ],
    "allocation_items": [
        MATRIX
        | {
            "id": 7,
            "allocation_id": "alloc_1",
            "config_hash": "h",
            "config": '{"b_q": 2}',
            "b_q": 2,
            "rank": 0,
            "nbytes": 1,
            "error": 0.5,
        }
    ],
}
UNDATED = ("allocation_items",)


@pytest.fixture
def old(empty_database_url: str) -> Iterator[Database]:
    """A database of the schema before, with a row in every table that changes."""
    database = Database(empty_database_url)
    upgrade(database, "0003")
    with database.engine.begin() as connection:
        for table, rows in ROWS.items():
            for row in rows:
                values = row if table in UNDATED else row | {"created_at": NOW}
                names = ", ".join(values)
                places = ", ".join(f":{name}" for name in values)
                connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({places})"), values)
    yield database
    database.dispose()


def rows_of(database: Database, query: str) -> list[tuple[Any, ...]]:
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_rows_are_carried_up_and_down(old: Database) -> None:
    anchors = "SELECT id, kl, anchor_error, projection FROM {}"
    choices = "SELECT id, allocation_id, nbytes, error FROM {}"
    before = rows_of(old, anchors.format("sensitivities")), rows_of(old, choices.format("allocation_items"))
    assert before == ([(41, 0.25, 0.5, "q_proj")], [(7, "alloc_1", 1, 0.5)])

    upgrade(old)
    assert rows_of(old, anchors.format("sensitivity_anchors")) == before[0]
    assert rows_of(old, choices.format("allocation_choices")) == before[1]
    assert rows_of(old, "SELECT kl_per_sequence FROM sensitivity_anchors") == [(None,)]
    assert [bool(chosen) for (chosen,) in rows_of(old, "SELECT chosen FROM fits")] == [True]
    # the names are views now, and the words of the old table still mean the same there
    assert rows_of(old, choices.format("allocation_items")) == before[1]
    assert rows_of(old, "SELECT model, kl FROM sensitivities_overview") == [("m", 0.25)]
    assert rows_of(old, "SELECT * FROM sensitivities") == []

    downgrade(old, "0003")
    assert "sensitivities" in inspect(old.engine).get_table_names()
    assert (rows_of(old, anchors.format("sensitivities")), rows_of(old, choices.format("allocation_items"))) == before

    upgrade(old)
    assert rows_of(old, anchors.format("sensitivity_anchors")) == before[0]
    # ids go on after the rows that came along
    with old.engine.begin() as connection:
        added = connection.execute(
            text(
                "INSERT INTO allocation_choices (allocation_id, layer_idx, projection, expert_idx, config_hash, "
                "config, b_q, rank, nbytes) VALUES ('alloc_1', 1, 'q_proj', -1, 'h', '{}', 2, 0, 1) RETURNING id"
            )
        ).scalar_one()
    assert added == 8
