"""Whose sensitivities weigh the errors: other methods, an incumbent's, the newest."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import insert

from compress_core.version import NUMERICS_VERSION
from results_db import Database
from results_db.clock import utc_now
from results_db.tables import Job, SensitivityEstimate
from tests.server.allocating import BUDGET, MENU, Ids, allocate, refused

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


def conclude(client: TestClient, database: Database, ids: Ids, matrices: list[dict[str, Any]], **columns: Any) -> None:
    """Estimates of a method for every matrix: the value is columns["value"] of (layer, projection)."""
    value = columns.pop("value")
    with database.write() as session:
        job_id = session.query(Job.id).filter(Job.kind == "sensitivity").first()[0]
        shared = {
            "model_id": ids["model_id"],
            "calibration_id": ids["calibration_id"],
            "job_id": job_id,
            "metric": "calibration_weighted_error",
            "token_hash": "other tokens",
            "applies_to": "all",
            "incumbent_hash": "",
            "log_se": 0.1,
            "own_weight": 1.0,
            "n_anchors": 2,
            "n_floored": 0,
            "numerics_version": NUMERICS_VERSION,
            "device_kind": "cpu",
            "created_at": utc_now(),
        } | columns
        session.execute(
            insert(SensitivityEstimate),
            [
                shared
                | {name: m[name] for name in ("layer_idx", "projection", "expert_idx")}
                | {"value": value(m), "low": 0.9 * value(m), "high": 1.1 * value(m)}
                for m in matrices
            ],
        )


def test_objectives_of_other_methods(client: TestClient, measured_model: Ids, model: Any) -> None:
    """Each weighs the error with its own sensitivities; what is not measured is named with the job that measures it."""
    database: Database = client.app.state.database  # type: ignore[attr-defined]
    ask: dict[str, Any] = {"budget": BUDGET, "menu": MENU}
    found = refused(client, measured_model, "sensitivity-missing", 409, **ask, objective="higgs")
    assert '"methods": ["higgs"]' in found["detail"]
    by_error = allocate(client, measured_model, **ask, objective="error")
    # first layers matter most by this method: the opposite of the anchors
    conclude(
        client, database, measured_model, model["matrices"],
        method="fisher_output", value=lambda m: 6.0 ** -m["layer_idx"],
    )  # fmt: skip
    conclude(
        client, database, measured_model, model["matrices"],
        method="higgs", metric="normalized_mse", value=lambda m: 2.0 * 6.0 ** -m["layer_idx"],
    )  # fmt: skip
    fisher = allocate(client, measured_model, **ask, objective="fisher_output")
    bits = [sum(i["b_q"] for i in fisher["items"] if i["layer_idx"] == layer) for layer in range(3)]
    assert bits[0] > bits[2]
    assert fisher["details"]["sensitivities"]["method"] == "fisher_output"
    assert fisher["items"][0]["sensitivity"] == 1.0
    assert fisher["objective"] == "fisher_output"
    higgs = allocate(client, measured_model, **ask, objective="higgs")
    assert higgs["items"][0]["sensitivity"] == 2.0
    for other in (fisher, higgs, by_error):
        assert other["predicted_kl"] > allocate(client, measured_model, **ask)["predicted_kl"]


def test_reanchored_takes_the_sensitivities_of_its_incumbent(
    client: TestClient, measured_model: Ids, model: Any
) -> None:
    database: Database = client.app.state.database  # type: ignore[attr-defined]
    first = allocate(client, measured_model, budget=BUDGET, menu=MENU)
    second = allocate(client, measured_model, budget={"bits_per_weight": 3.5}, menu=MENU)
    ask: dict[str, Any] = {"budget": BUDGET, "menu": MENU, "objective": "reanchored"}
    for incumbent, value in ((first, 1.0), (second, 5.0)):
        conclude(
            client, database, measured_model, model["matrices"],
            method="reanchored", incumbent_hash=incumbent["content_hash"], value=lambda m, value=value: value,
        )  # fmt: skip
    found = allocate(client, measured_model, **ask, incumbent_allocation_id=first["id"])
    assert {item["sensitivity"] for item in found["items"]} == {1.0}
    newest = allocate(client, measured_model, **ask)
    assert {item["sensitivity"] for item in newest["items"]} == {5.0}
    stranger = allocate(client, measured_model, kind="uniform", uniform={"b_q": 2})
    missing = refused(client, measured_model, "sensitivity-missing", 409, **ask, incumbent_allocation_id=stranger["id"])
    assert "incumbent_allocation_id" in missing["detail"]


@sqlite_only
def test_configs_with_a_low_rank_part_have_weights_of_their_own(
    client: TestClient, measured_model: Ids, model: Any
) -> None:
    database: Database = client.app.state.database  # type: ignore[attr-defined]
    for applies_to, value in (("all", 1.0), ("low_rank", 100.0)):
        conclude(
            client, database, measured_model, model["matrices"],
            method="kl_anchor", applies_to=applies_to, value=lambda m, value=value: value,
        )  # fmt: skip
    found = allocate(client, measured_model, budget=BUDGET, menu=MENU)
    assert {item["rank"] for item in found["items"]} == {0}, "L·R is charged a hundred times as much"
    assert {item["sensitivity"] for item in found["items"]} == {1.0}
    pinned = {"pins": [{"matrices": {"layers": [0], "projections": ["q"]}, "config": {"b_q": 2, "rank": 4}}]}
    forced = allocate(client, measured_model, budget=BUDGET, menu=MENU, constraints=pinned)
    assert forced["items"][0]["sensitivity"] == 100.0


@sqlite_only
def test_the_newest_conclusion_counts_and_texts_are_not_mixed(
    client: TestClient, measured_model: Ids, model: Any
) -> None:
    """Before, anchors of two texts were averaged."""
    database: Database = client.app.state.database  # type: ignore[attr-defined]
    for token_hash, value in (("first text", 1.0), ("second text", 9.0)):
        conclude(
            client, database, measured_model, model["matrices"],
            method="kl_anchor", token_hash=token_hash, value=lambda m, value=value: value,
        )  # fmt: skip
    found = allocate(client, measured_model, budget=BUDGET, menu=MENU)
    assert {item["sensitivity"] for item in found["items"]} == {9.0}
    assert found["details"]["sensitivities"]["token_hash"] == "second text"
    listed = client.get("/api/v1/sensitivities?limit=1000&projection=q").json()["items"]
    assert len(listed) == 6, "both are listed"
