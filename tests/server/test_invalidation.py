"""Measurements are invalidated and measured again: what is refused, what becomes stale, and what says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, text, update

from compress_core.config import CompressionConfig
from results_db.params import AllocateParams, FitParams
from results_db.retire import invalidate as invalidate_where
from results_db.tables import Job, Measurement
from server.allocations.service import compute_allocation, save_allocation
from server.fits.records import save_fit
from server.fits.service import compute_fit
from tests.server.simulated import error_of
from tests.serving import until

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)

Ids = dict[str, str]
MENU = [{"b_q": b, "rank": r} for b in (2, 3, 4) for r in (0, 4, 12)]
BUDGET = {"uniform": {"b_q": 3, "rank": 4}}
PATH = "/api/v1/measurements"


def cells(client: TestClient, **filters: Any) -> list[dict[str, Any]]:
    """Measurements, oldest first."""
    return list(client.get(PATH, params={"limit": 1000, "order": "asc"} | filters).json()["items"])


def retired(client: TestClient, **filters: Any) -> list[dict[str, Any]]:
    return list(client.get(f"{PATH}/retired", params={"limit": 1000, "order": "asc"} | filters).json()["items"])


def invalidate(client: TestClient, id_: int, reason: str = "a broken fan", **fields: Any) -> dict[str, Any]:
    answer = client.post(f"{PATH}/{id_}/invalidate", json={"reason": reason} | fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(answer: Any, status: int, slug: str) -> dict[str, Any]:
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:bitbudget:problem:{slug}"), answer.text
    return dict(answer.json())


def fit(client: TestClient, ids: Ids) -> dict[str, Any]:
    answer = client.post("/api/v1/fits", json={"model_id": ids["model_id"], "form": "log_linear"})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def allocate(client: TestClient, ids: Ids, **params: Any) -> dict[str, Any]:
    ask = {"model_id": ids["model_id"], "name": "test", "budget": BUDGET, "menu": MENU}
    answer = client.post("/api/v1/allocations", json=ask | params)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def seen(client: TestClient, kind: str, row: dict[str, Any]) -> dict[str, Any]:
    return dict(client.get(f"/api/v1/{kind}/{row['id']}").json())


# --- the endpoints -------------------------------------------------------------------------------------------------


def test_an_invalidated_cell_is_listed_missing_and_measured_by_the_next_sweep(
    client: TestClient, measured_model: Ids, run_to_end: Callable[..., None]
) -> None:
    before = cells(client)
    bad = before[-1]
    key = {"Idempotency-Key": "once"}
    first = client.post(f"{PATH}/{bad['id']}/invalidate", json={"reason": "a broken fan"}, headers=key)
    assert first.json() == {"dry_run": False, "measurements": 1, "stale": {"fits": [], "allocations": [], "gates": []}}
    again = client.post(f"{PATH}/{bad['id']}/invalidate", json={"reason": "a broken fan"}, headers=key)
    assert (again.json(), again.headers["Idempotency-Replayed"]) == (first.json(), "true")
    (row,) = retired(client)
    assert (row["measurement_id"], row["reason"], row["replaced_by_sweep_id"]) == (bad["id"], "a broken fan", None)
    assert {name: row[name] for name in bad if name != "id"} == {k: v for k, v in bad.items() if k != "id"}
    assert retired(client, layer_idx=bad["layer_idx"] + 1) == []
    (sweep,) = client.get("/api/v1/sweeps").json()["items"]
    assert client.get(f"/api/v1/sweeps/{sweep['id']}").json()["n_recorded"] == sweep["n_cells"] - 1
    ask = {name: sweep[name] for name in ("model_id", "configs")}
    assert client.post("/api/v1/sweeps", json=ask).status_code == 202
    run_to_end()
    after = cells(client)
    assert client.get(f"/api/v1/sweeps/{sweep['id']}").json()["n_recorded"] == sweep["n_cells"]
    assert [row["id"] for row in after[:-1]] == [row["id"] for row in before[:-1]]
    assert after[-1]["id"] > bad["id"], "an id never means two measurements"
    assert after[-1]["config_hash"] == bad["config_hash"]


def test_what_cannot_be_invalidated_says_why(client: TestClient, measured_model: Ids) -> None:
    id_ = cells(client)[0]["id"]
    refused(client.post(f"{PATH}/999999/invalidate", json={"reason": "x"}), 404, "not-found")
    for body in ({}, {"reason": ""}, {"reason": "  "}, {"reason": "x", "dryrun": True}):
        refused(client.post(f"{PATH}/{id_}/invalidate", json=body), 422, "invalid-request")
    refused(client.post(f"{PATH}/invalidate", json={"reason": "x"}), 422, "no-filter")
    invalidate(client, id_)
    body = refused(client.post(f"{PATH}/{id_}/invalidate", json={"reason": "x"}), 409, "already-retired")
    assert "a broken fan" in body["detail"]
    assert len(retired(client)) == 1


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_of_two_who_invalidate_one_the_second_is_told(app: FastAPI, client: TestClient, measured_model: Ids) -> None:
    """SQLite lets no second writing transaction begin at all."""
    id_ = cells(client)[0]["id"]
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with ThreadPoolExecutor(1) as pool:
        with app.state.database.write() as session:
            assert invalidate_where(session, Measurement.id == id_, "a broken fan").measurements == 1
            second = pool.submit(client.post, f"{PATH}/{id_}/invalidate", json={"reason": "x"})
            with app.state.database.read() as other:
                until(lambda: other.scalar(waits), "the second to wait")
        assert "a broken fan" in refused(second.result(60), 409, "already-retired")["detail"]
    assert len(retired(client)) == 1


def test_many_are_invalidated_by_the_filters_of_the_list(client: TestClient, measured_model: Ids) -> None:
    made = fit(client, measured_model)
    n = len(cells(client))
    which = {"layer_idx": 1, "projection": "down"}
    matching = len(cells(client, **which))
    tried = client.post(f"{PATH}/invalidate", params=which, json={"reason": "x", "dry_run": True}).json()
    assert tried == {
        "dry_run": True,
        "measurements": matching,
        "stale": {"fits": [made["id"]], "allocations": [], "gates": []},
    }
    assert (len(cells(client)), retired(client)) == (n, [])
    done = client.post(f"{PATH}/invalidate", params=which, json={"reason": "x"}).json()
    assert done == tried | {"dry_run": False}
    assert (len(cells(client)), len(retired(client, **which))) == (n - matching, matching)
    assert client.post(f"{PATH}/invalidate", params=which, json={"reason": "x"}).json()["measurements"] == 0
    assert f"and {9 - 1} others were invalidated: x" in seen(client, "fits", made)["stale_reason"]


# --- what is stale, and says so ------------------------------------------------------------------------------------


def test_fits_and_allocations_go_stale_and_fresh_ones_stand(
    client: TestClient, measured_model: Ids, run_to_end: Callable[..., None]
) -> None:
    old_fit, chosen = fit(client, measured_model), allocate(client, measured_model)
    small = allocate(client, measured_model, menu=MENU[:1], budget=None, kind="uniform", uniform=MENU[0])
    bad = next(row for row in cells(client) if (row["b_q"], row["rank"], row["layer_idx"]) == (4, 12, 2))
    assert bad["codebook"] != "rtn"
    done = invalidate(client, bad["id"])
    assert done["stale"] == {"fits": [old_fit["id"]], "allocations": [chosen["id"]], "gates": []}
    reason = f"measurement {bad['id']} (layer 2, {bad['projection']}, b_q 4, rank 12) was invalidated: a broken fan"
    for kind, row in (("fits", old_fit), ("allocations", chosen)):
        now = seen(client, kind, row)
        assert (now["stale_reason"], now["stale_at"] is not None) == (reason, True)
    assert seen(client, "allocations", small)["stale_at"] is None
    # whoever builds on it is told
    rival = allocate(client, measured_model, budget_allocation_id=chosen["id"])
    assert rival["stale_at"] is None
    assert rival["details"]["stale_inputs"] == [{"allocation_id": chosen["id"], "name": "test", "stale_reason": reason}]
    asked = {"model_id": measured_model["model_id"]}
    packed = client.post("/api/v1/compressions", json=asked | {"allocation_id": chosen["id"]})
    assert packed.status_code == 202
    assert reason in packed.json()["warning"]
    assert client.post("/api/v1/compressions", json=asked | {"allocation_id": rival["id"]}).json()["warning"] is None
    tried = client.post(
        "/api/v1/validations", json=asked | {"name": "v", "allocation_ids": [rival["id"], chosen["id"]]}
    )
    assert reason in tried.json()["warning"]
    # measured and computed again
    sweep = client.get("/api/v1/sweeps").json()["items"][0]
    client.post("/api/v1/sweeps", json={"model_id": sweep["model_id"], "configs": sweep["configs"]})
    run_to_end()
    assert fit(client, measured_model)["stale_at"] is None
    assert allocate(client, measured_model)["stale_at"] is None


def test_a_forced_sweep_makes_stale_only_what_stands_on_other_numbers(
    app: FastAPI,
    client: TestClient,
    measured_model: Ids,
    run_to_end: Callable[..., None],
    make_worker: Callable[..., Any],
) -> None:
    old_fit, chosen = fit(client, measured_model), allocate(client, measured_model)
    (first,) = client.get("/api/v1/sweeps").json()["items"]
    ask = {"model_id": first["model_id"], "configs": [MENU[0], MENU[-1]], "force": True}
    n_cells = len(cells(client))

    def force(worker: Any) -> dict[str, Any]:
        client.post("/api/v1/sweeps", json=ask)
        run_to_end(worker)
        sweep = client.get("/api/v1/sweeps").json()["items"][0]
        return dict(client.get(f"/api/v1/sweeps/{sweep['id']}").json())

    same = force(make_worker())
    assert same["n_recorded"] == same["n_cells"] == len(retired(client)) == len(cells(client, sweep_id=same["id"]))
    assert len(cells(client)) == n_cells
    for kind, row in (("fits", old_fit), ("allocations", chosen)):
        assert seen(client, kind, row)["stale_at"] is None

    def hotter(config: CompressionConfig, layer: int) -> float:
        return error_of(config, layer) * (1.1 if layer == 2 else 1.0)

    other = force(make_worker(error_of=hotter))
    for kind, row in (("fits", old_fit), ("allocations", chosen)):
        assert seen(client, kind, row)["stale_reason"].endswith(f"was measured again by sweep {other['id']}")
    assert len(cells(client)) == n_cells
    assert client.get(f"/api/v1/sweeps/{same['id']}").json()["n_recorded"] == same["n_cells"]
    # the export has each cell once, as it is now
    rows = [json.loads(line) for line in client.get(f"{PATH}/export").text.splitlines()]
    shown = {row["id"]: row["calibration_weighted_error"] for row in rows if "config_hash" in row}
    assert shown == {row["id"]: row["calibration_weighted_error"] for row in cells(client)}


def test_what_is_stored_after_its_measurement_was_retired_is_stale_at_birth(
    app: FastAPI, client: TestClient, measured_model: Ids
) -> None:
    database = app.state.database
    with database.read() as session:
        draft = compute_fit(session, FitParams(model_id=measured_model["model_id"], form="log_linear"))
        ask = {"model_id": measured_model["model_id"], "name": "late", "budget": BUDGET, "menu": MENU}
        choice = compute_allocation(session, AllocateParams.model_validate(ask))
        given = compute_allocation(
            session, AllocateParams(model_id=measured_model["model_id"], name="given", kind="uniform", uniform=MENU[0])
        )
    bad = next(row for row in cells(client) if (row["b_q"], row["rank"]) == (3, 4))
    assert invalidate(client, bad["id"])["stale"] == {"fits": [], "allocations": [], "gates": []}
    with database.write() as session:
        rows = [*save_fit(session, draft).values(), *save_allocation(session, choice)]
        (unharmed,) = save_allocation(session, given)
    for kind, row in zip(("fits", "allocations"), rows, strict=True):
        assert "was invalidated: a broken fan" in client.get(f"/api/v1/{kind}/{row.id}").json()["stale_reason"]
    assert client.get(f"/api/v1/allocations/{unharmed.id}").json()["stale_at"] is None


def test_a_study_whose_cell_is_bad_is_marked_and_computed_again(
    app: FastAPI, client: TestClient, study_config: dict[str, Any], run_to_end: Callable[..., None]
) -> None:
    study_config["validation"] |= {"random": 0}
    study_config |= {"phases": [0, 1, 2, 3], "baselines": {"rtn": [], "gptq": []}}
    study_config["grid"] = {"codebook": "e8", "b_q": [2, 3], "rank": [0, 4, 8]}
    study = client.post("/api/v1/studies", json={"config": study_config}).json()
    path = f"/api/v1/studies/{study['id']}"
    refused(client.post(f"{path}/recompute"), 409, "wrong-state")
    run_to_end()
    refused(client.post(f"{path}/recompute"), 409, "nothing-stale")
    n_cells = len(cells(client))
    bad = next(row for row in cells(client) if (row["b_q"], row["rank"]) == (3, 4))
    stale = invalidate(client, bad["id"])["stale"]
    gates = {gate["name"]: gate for gate in client.get(path).json()["gates"] if gate["phase"] < 4}
    # what looks at sensitivities or at the pilot alone stands
    assert {name for name, gate in gates.items() if gate["stale_at"] is None} == {
        "sensitivity_varies",
        "manual_beats_uniform",
    }
    told = f"measurement {bad['id']} (layer {bad['layer_idx']}, {bad['projection']}, b_q 3, rank 4) was invalidated"
    assert gates["error_varies"]["stale_reason"].startswith(told)
    assert all(told in gate["stale_reason"] for gate in gates.values() if gate["stale_at"])
    assert (len(stale["gates"]), len(stale["allocations"])) == (len(gates) - 2, 6)
    again = client.post(f"{path}/recompute")
    assert again.status_code == 202, again.text
    assert again.headers["Location"] == f"/api/v1/studies/{again.json()['id']}"
    run_to_end()
    fresh = client.get(again.headers["Location"]).json()
    assert fresh["config"] == study["config"]
    assert fresh["state"] == client.get(path).json()["state"]
    assert [gate["stale_at"] for gate in fresh["gates"]] == [None] * len(fresh["gates"])
    assert len(cells(client)) == n_cells
    parts = [job["result"] for job in fresh["jobs"] if job["step"].startswith("sweep:")]
    assert sum(part["recorded"] for part in parts) == 1
    assert client.get(path).json()["gates"][-1]["stale_at"] is not None, "the old study keeps its marks"
    # a gate that is decided anew is replaced, and loses its mark where what it looks at stands
    gate_job = next(job for job in client.get(path).json()["jobs"] if job["step"] == "gate:1")
    with app.state.database.write() as session:
        session.execute(update(Job).where(Job.id == gate_job["id"]).values(state="queued"))
    run_to_end()
    marks = {gate["name"]: gate["stale_at"] for gate in client.get(path).json()["gates"]}
    assert marks["error_varies"] is None
    assert marks["fit_explains"] is not None


@sqlite_only
def test_a_gate_that_is_decided_upon_something_stale_is_stale_from_the_start(
    app: FastAPI,
    client: TestClient,
    study_config: dict[str, Any],
    make_worker: Callable[..., Any],
    run_to_end: Callable[..., None],
) -> None:
    study_config |= {"phases": [1, 2]}
    study = client.post("/api/v1/studies", json={"config": study_config}).json()
    worker = make_worker()
    for _ in range(200):
        jobs = {job["step"]: job for job in client.get(f"/api/v1/studies/{study['id']}").json()["jobs"]}
        if jobs["fit"]["state"] == "succeeded":
            break
        if not app.state.loop.turn():
            worker.run_all()
    assert jobs["gate:2"]["state"] in ("waiting", "queued")
    with app.state.database.read() as session:
        bad = session.scalars(select(Measurement).where(Measurement.codebook == "e8").limit(1)).one()
    invalidate(client, bad.id)
    run_to_end()
    gates = {gate["name"]: gate for gate in client.get(f"/api/v1/studies/{study['id']}").json()["gates"]}
    assert gates["fit_explains"]["stale_reason"].startswith("fit ")
    assert "was invalidated: a broken fan" in gates["fit_explains"]["stale_reason"]
