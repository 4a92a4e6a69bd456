"""Error models fitted to rows of the database: forms, their choice, and what they are of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from results_db import Database
from results_db.tables import FitParameter, Measurement

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)

Ids = dict[str, str]
FORMS = {"log_linear", "multiplicative", "additive", "monotone"}


def made(client: TestClient, ids: Ids, **params: Any) -> dict[str, Any]:
    """A fit that was made, as its address shows it."""
    answer = client.post("/api/v1/fits", json={"model_id": ids["model_id"]} | params)
    assert answer.status_code == 201, answer.text
    return dict(client.get(answer.headers["location"]).json())


def refused(client: TestClient, body: dict[str, Any], slug: str, status: int = 422) -> str:
    answer = client.post("/api/v1/fits", json=body)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:bitbudget:problem:{slug}"), answer.text
    return str(answer.json()["detail"])


def sweep(client: TestClient, ids: Ids, run_to_end: Callable[..., None], **fields: Any) -> None:
    configs = [{"b_q": b, "rank": r} | fields for b in (2, 3, 4) for r in (0, 4, 12)]
    body = {"model_id": ids["model_id"], "configs": configs}
    assert client.post("/api/v1/sweeps", json=body).status_code == 202
    run_to_end()


def test_all_forms_are_fitted_and_the_best_is_chosen(client: TestClient, measured_model: Ids) -> None:
    fit = made(client, measured_model)
    # what the simulated worker's formula says
    assert (fit["form"], fit["chosen"]) == ("additive", True)
    common = {p["name"]: p for p in fit["parameters"] if p["projection"] is None}
    assert common["beta"]["value"] == pytest.approx(1.8, rel=0.01)
    assert common["delta"]["value"] == pytest.approx(0.7, rel=0.01)
    assert common["beta"]["low"] <= common["beta"]["value"] <= common["beta"]["high"]
    own = [p for p in fit["parameters"] if p["projection"] is not None and p["layer_idx"] is None]
    assert {(p["name"], p["projection"]) for p in own} == {
        (name, p) for name in ("alpha", "beta", "gamma", "delta") for p in ("q", "k", "v", "o", "gate", "up", "down")
    }
    assert len([p for p in fit["parameters"] if p["name"] == "s"]) == 21
    assert fit["checks"] == {"beta_positive": True, "delta_positive": True}
    assert fit["r2"] > 0.999
    assert fit["r2_by_group"]["cross_validated"] > 0.99
    for scheme, error in (("config", "cv_error"), ("layer", "cv_layer_error")):
        assert fit["cv"][scheme]["rmse_log"] == fit[error] < 0.01
        assert {"attention", "mlp", "early", "late", "by_projection"} < set(fit["cv"][scheme]["quality"])
    assert fit["details"]["quality"]["mlp"]["r2_log_within"] > 0.99
    assert fit["n_observations"] == len(fit["residuals"])
    assert fit["residuals"][0]["predicted"] == pytest.approx(fit["residuals"][0]["error"], rel=0.01)
    selection = {entry["form"]: entry for entry in fit["details"]["selection"]}
    assert set(selection) == FORMS
    assert [form for form, entry in selection.items() if entry["chosen"]] == ["additive"]
    assert all(entry["reason"] and entry["cv_rmse"] >= fit["cv_error"] for entry in selection.values())
    assert [found["basis"] for found in fit["details"]["clusters"]] == ["level_and_shape", "shape"]
    assert fit["details"]["clusters"][0]["k"] == 1  # three layers
    group = client.get(f"/api/v1/fits?group_id={fit['group_id']}").json()["items"]
    assert {row["form"] for row in group} == FORMS
    assert [row["id"] for row in group if row["chosen"]] == [fit["id"]]


def test_a_form_that_is_named_stands_alone(client: TestClient, measured_model: Ids, database: Database) -> None:
    fit = made(client, measured_model, form="multiplicative")
    assert (fit["form"], fit["chosen"], fit["group_id"]) == ("multiplicative", True, None)
    assert "no residual spectrum is recorded" in fit["details"]["rho"]
    # spectra of rank 0, with which a term of rank r leaves (r + 1)^(−1/2)
    ranks = [1, 2, 4, 8, 16]
    spectrum = {"ranks": ranks, "captured": [1 - (r + 1) ** -0.5 for r in ranks]}
    with database.write() as session:
        session.execute(update(Measurement).where(Measurement.rank == 0).values(residual_spectrum=spectrum))
    fit = made(client, measured_model, form="multiplicative")
    assert "residual spectrum, at its bits" in fit["details"]["rho"]
    assert {p["name"] for p in fit["parameters"]} == {"beta", "eta", "s"}
    monotone = made(client, measured_model, form="monotone")
    assert {p["name"] for p in monotone["parameters"]} == set()
    assert monotone["cv"]["config"]["quality"]["attention"]["r2_log_within"] < 1
    with database.read() as session:
        names = set(session.scalars(select(FitParameter.name)))
    assert names == {"beta", "gamma", "delta", "eta", "s"}


@sqlite_only
def test_a_fit_is_of_the_only_kind_that_was_measured(
    client: TestClient, measured_model: Ids, run_to_end: Callable[..., None]
) -> None:
    ask = {"model_id": measured_model["model_id"], "form": "log_linear"}

    def fit(**fields: Any) -> dict[str, Any]:
        return made(client, measured_model, form="log_linear", **fields)

    alone = fit()
    assert (alone["codebook"], alone["states"]) == ("trellis", 1024)
    assert (alone["factor_bits_l"], alone["factor_bits_r"]) == (4, 4)
    sweep(client, measured_model, run_to_end, codebook="e8")
    told = refused(client, ask, "fit-failed")
    assert "e8, trellis of 1024 states" in told
    assert "rtn" not in told
    assert fit(codebook="e8")["codebook"] == "e8"
    assert fit(states=1024)["codebook"] == "trellis"
    sweep(client, measured_model, run_to_end, states=4096)
    told = refused(client, ask | {"codebook": "trellis"}, "fit-failed")
    assert "trellis of 1024 states, trellis of 4096 states" in told
    large = fit(states=4096)
    assert (large["codebook"], large["states"]) == ("trellis", 4096)
    assert large["n_observations"] == alone["n_observations"]
    sweep(client, measured_model, run_to_end, codebook="e8", factor_bits=[8, 16])
    told = refused(client, ask | {"codebook": "e8"}, "fit-failed")
    assert "e8 with factors of 4 bits, e8 with factors of 8 and 16 bits" in told
    assert "factor_bits_l and factor_bits_r" in told
    few, many = fit(codebook="e8", factor_bits_l=4), fit(codebook="e8", factor_bits_r=16)
    assert (many["factor_bits_l"], many["factor_bits_r"]) == (8, 16)
    # configs of rank 0 have no factors and belong to both
    assert few["n_observations"] == many["n_observations"] == alone["n_observations"]
    assert "2 bits of L" in refused(client, ask | {"factor_bits_l": 2}, "fit-failed")


@sqlite_only
def test_repetitions_with_another_seed_tell_the_noise(
    client: TestClient, measured_model: Ids, run_to_end: Callable[..., None]
) -> None:
    alone = made(client, measured_model, form="log_linear")
    sweep(client, measured_model, run_to_end, seed=1)
    fit = made(client, measured_model, form="log_linear")
    assert fit["n_observations"] == 2 * alone["n_observations"]
    assert fit["details"]["mixed"] == {"seed": [0, 1]}
    assert alone["details"]["noise"]["replicate_sd"] is None
    # the formula knows no seed
    assert fit["details"]["noise"]["replicate_sd"] == pytest.approx(0, abs=1e-12)
    assert fit["details"]["noise"]["replicate_freedom"] == alone["n_observations"]


@sqlite_only
def test_fits_that_cannot_be(
    client: TestClient, measured_model: Ids, model: dict[str, Any], run_to_end: Callable[..., None]
) -> None:
    ask = {"model_id": model["id"]}
    refused(client, ask | {"codebook": "scalar"}, "fit-failed")
    told = refused(client, ask | {"states": 512}, "fit-failed")
    assert "512 states" in told
    assert "rtn, trellis of 1024 states" in told
    refused(client, ask | {"form": "magic"}, "invalid-request")
    refused(client, {"model_id": "nothing"}, "not-found", 404)
    refused(client, ask | {"calibration_id": "nothing"}, "not-found", 404)
    body = ask | {"configs": [{"b_q": 2, "rank": r, "codebook": "e8"} for r in (0, 4)]}
    assert client.post("/api/v1/sweeps", json=body).status_code == 202
    run_to_end()
    assert "at least 2 values of b_q" in refused(client, ask | {"codebook": "e8", "form": "additive"}, "fit-failed")
    # what cannot be fitted is told beside what can
    fit = made(client, measured_model, codebook="e8")
    assert fit["form"] == "monotone"
    reasons = {entry["form"]: entry["reason"] for entry in fit["details"]["selection"]}
    assert reasons["additive"].startswith("not fitted: the additive fit needs at least 2 values of b_q")
