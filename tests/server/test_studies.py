"""Studies: expansion into jobs, the whole way with a simulated worker, NO-GO, failure, cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient

from compress_core.config import CompressionConfig
from server.studies.finish import finish_study
from server.studies.schemas import GridSection
from tests.server.documented import undocumented

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)

Config = dict[str, Any]

#: phases up to an allocation, and up to a headline, without what they do not need: pilot, fit, further budgets
TO_CHOICE, TO_HEADLINE = [1, 3], [1, 3, 4]

#: what is compressed and evaluated at each budget
CONTENDERS = ("uniform", "optimal", "rank0", "manual", "rtn", "chosen")
#: what only a prediction that does not hold asks for
SECOND_CHOICE = {"sensitivity:reanchor", "allocate:reanchored", "validate:reanchored"}


def start(client: TestClient, config: Config) -> dict[str, Any]:
    answer = client.post("/api/v1/studies", json={"config": config})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/api/v1/studies/{answer.json()['id']}"
    return dict(answer.json())


def look(client: TestClient, study: dict[str, Any]) -> dict[str, Any]:
    return dict(client.get(f"/api/v1/studies/{study['id']}").json())


def test_a_study_becomes_a_tree_of_jobs(client: TestClient, study_config: Config) -> None:
    study = start(client, study_config)
    steps = [job["step"] for job in study["jobs"]]
    assert steps == [
        "calibrate",
        "sensitivity",
        "gate:0:sensitivity",
        "allocate:phase0-uniform",
        "allocate:phase0-manual",
        "compress:phase0-uniform",
        "compress:phase0-manual",
        "evaluate:original:stdlib",
        "evaluate:phase0-uniform:stdlib",
        "evaluate:phase0-manual:stdlib",
        "gate:0:manual",
        "sweep",
        "gate:1",
        "fit",
        "gate:2",
        "allocate:uniforms",
        "validate:uniforms",
        "allocate:uniform",
        "allocate:optimal",
        "allocate:rank0",
        "allocate:manual",
        "allocate:rtn",
        "allocate:random",
        "validate:choice",
        "sensitivity:reanchor",
        "allocate:reanchored",
        "validate:reanchored",
        "allocate:chosen",
        "gate:3",
        *(f"compress:{name}" for name in CONTENDERS),
        *(f"evaluate:{name}:stdlib" for name in CONTENDERS),
        "gate:4",
        "gate:5",
    ]
    jobs = {job["step"]: job for job in study["jobs"]}
    assert [job["position"] for job in study["jobs"]] == list(range(len(steps)))
    assert jobs["calibrate"]["state"] == "queued"
    assert {job["state"] for job in study["jobs"][1:]} == {"waiting"}
    assert jobs["validate:choice"]["inputs"]["allocation_ids"][-1] == {
        "job": jobs["allocate:random"]["id"],
        "key": "allocation_ids",
        "optional": True,
    }
    assert jobs["sensitivity:reanchor"]["inputs"]["only_if"] == {
        "job": jobs["validate:choice"]["id"],
        "key": "reanchor",
    }
    assert jobs["gate:1"]["run_when"] == "finished"
    # the pilot chooses on text that the report does not use
    assert jobs["evaluate:phase0-manual:stdlib"]["params"]["split"] == "select"
    assert jobs["evaluate:optimal:stdlib"]["params"]["split"] == "report"
    # what the grid lacks is taken from it: rank 0 and round-to-nearest are measured too
    assert len(jobs["sweep"]["params"]["configs"]) == 9 + 3


@sqlite_only
def test_yaml_and_json_make_the_same_study(client: TestClient, study_config: Config) -> None:
    answer = client.post(
        "/api/v1/studies", content=yaml.safe_dump(study_config), headers={"Content-Type": "application/yaml"}
    )
    assert answer.status_code == 202, answer.text
    assert answer.json()["config"] == start(client, study_config)["config"]


def test_what_a_grid_leaves_out_is_what_a_config_leaves_out() -> None:
    grid = GridSection(b_q=[2, 3], rank=[0, 8])
    assert grid.configs() == [CompressionConfig(b_q=b, rank=r) for b in (2, 3) for r in (0, 8)]


@sqlite_only
def test_a_grid_of_a_larger_trellis(client: TestClient, study_config: Config, run_to_end: Callable[..., None]) -> None:
    study_config["grid"] |= {"codebook": "trellis", "states": 4096}
    study_config["phases"] = [1, 2, 3]
    study = start(client, study_config)
    run_to_end()
    study = look(client, study)
    assert study["state"] == "succeeded", study["reason"]
    steps = {job["step"]: job["params"] for job in study["jobs"]}
    assert {c["states"] for c in steps["allocate:optimal"]["menu"]} == {4096}
    assert {(c["codebook"], c["states"]) for c in steps["sensitivity"]["anchors"]} == {("trellis", 4096)}
    fits = client.get("/api/v1/fits").json()["items"]
    assert {(fit["codebook"], fit["states"]) for fit in fits} == {("trellis", 4096)}
    study_config["grid"]["states"] = 1000
    refused = client.post("/api/v1/studies", json={"config": study_config})
    assert refused.status_code == 422
    assert "power of two" in refused.text


@sqlite_only
def test_further_budgets_and_datasets(client: TestClient, study_config: Config, tmp_path: Any) -> None:
    text = tmp_path / "models" / "some.txt"
    text.write_text("words")
    study_config["budgets"].append({"bits_per_weight": 4.0})
    study_config["evaluation"]["datasets"] = [{"kind": "stdlib"}, {"kind": "file", "path": str(text)}]
    jobs = {job["step"]: job for job in start(client, study_config)["jobs"]}
    assert {"evaluate:optimal:some.txt", "compress:optimal@2", "evaluate:uniform@2:some.txt"} <= set(jobs)
    assert jobs["evaluate:optimal@2:stdlib"]["phase"] == 5
    assert set(jobs["gate:5"]["params"]["context"]["pairs"]) == {
        "stdlib",
        "some.txt",
        "stdlib at budget 2",
        "some.txt at budget 2",
    }


def test_a_whole_file_is_judged_and_nothing_else_is_drawn_from_it(
    client: TestClient, study_config: Config, tmp_path: Any
) -> None:
    heldout = tmp_path / "models" / "heldout.txt"
    heldout.write_text("text\n")
    study_config["evaluation"]["datasets"] = [{"kind": "file", "path": str(heldout), "split": "whole"}]
    jobs = {job["step"]: job["params"] for job in start(client, study_config)["jobs"]}
    assert jobs["evaluate:original:heldout.txt"]["split"] == "whole"
    assert jobs["evaluate:optimal:heldout.txt"]["text"]["path"] == str(heldout)
    # phase 0 chooses a recipe: on a split of the study's own text, never on what the report is made of
    pilot = jobs["evaluate:phase0-manual:heldout.txt"]
    assert (pilot["split"], pilot["text"]["kind"]) == ("select", "stdlib")
    study_config["evaluation"]["datasets"] = [{"kind": "stdlib", "split": "whole"}]
    answer = client.post("/api/v1/studies", json={"config": study_config})
    assert answer.status_code == 422
    assert "evaluation.datasets.0.split" in answer.text


@sqlite_only
def test_a_manual_recipe_that_splits_nothing_decides_nothing(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None]
) -> None:
    study_config["phases"] = [0]
    study_config["phase0"]["high"] = study_config["phase0"]["low"] | {"b_q": 4}
    study_config["phase0"]["uniform"] = study_config["phase0"]["low"]
    study = start(client, study_config)
    run_to_end()
    gate = next(g for g in look(client, study)["gates"] if g["name"] == "manual_beats_uniform")
    assert gate["verdict"] == "NOT DECIDABLE"
    assert "every layer has the low config" in gate["explanation"]


def test_a_whole_study(client: TestClient, study_config: Config, run_to_end: Callable[..., None]) -> None:
    study = start(client, study_config)
    run_to_end()
    study = look(client, study)
    assert study["state"] == "succeeded", study["reason"]
    assert study["finished_at"].endswith("Z")
    states = {job["step"]: job["state"] for job in study["jobs"]}
    assert {step for step, state in states.items() if state == "skipped"} == SECOND_CHOICE
    assert {state for step, state in states.items() if step not in SECOND_CHOICE} == {"succeeded"}
    for job in study["jobs"]:
        if job["step"] in SECOND_CHOICE:
            assert job["error"]["code"] == "not-needed"
            assert "validate:choice" in job["error"]["message"]
    verdicts = {(gate["phase"], gate["name"]): gate["verdict"] for gate in study["gates"]}
    assert verdicts == {
        (0, "sensitivity_varies"): "GO",
        (0, "manual_beats_uniform"): verdicts[0, "manual_beats_uniform"],
        (1, "error_varies"): "GO",
        (1, "profiles_differ"): "GO",
        (1, "collection_complete"): "GO",
        (2, "fit_explains"): "GO",
        (2, "parameters_physical"): verdicts[2, "parameters_physical"],
        (2, "fit_generalises"): "GO",
        (3, "optimal_differs"): "GO",
        (3, "bytes_match"): "GO",
        (3, "allocator_fast"): "GO",
        (4, "optimal_beats_uniform"): verdicts[4, "optimal_beats_uniform"],
        (4, "prediction_ranks"): "GO",
        (4, "downstream_preserved"): "NOT MEASURED",
        (4, "scaled_fit_explains"): "GO",
        (5, "optimal_beats_uniform"): "GO",
        (5, "consistent"): "NOT MEASURED",
    }
    assert undocumented(client) == []
    bytes_match = next(gate for gate in study["gates"] if gate["name"] == "bytes_match")
    assert "on disk" in bytes_match["explanation"]
    headline = study["headline"]
    rows = {row["name"]: row for row in headline["rows"]}
    assert list(rows) == ["original", "uniform", "optimal", "rank0", "manual", "rtn"]
    assert {row["matrix_bytes"] <= rows["uniform"]["matrix_bytes"] for row in headline["rows"][1:]} == {True}
    assert rows["optimal"]["matrix_bytes"] <= headline["budget_bytes"]
    assert rows["optimal"]["ppl"] < rows["uniform"]["ppl"] < rows["rtn"]["ppl"]
    assert headline["optimal_vs_uniform"]["verdict"] == "optimal is better"
    assert headline["optimal_vs_uniform"]["n_windows"] == 100
    assert headline["budgets"][0]["rows"] == headline["rows"]
    assert headline["sentence"].startswith("optimal beats best uniform")
    assert headline["optimal_vs_uniform"]["recommended"] == "optimal"
    assert "Optimal is recommended: optimal won on the select split, too" in headline["sentence"]
    assert headline["ceiling"].startswith("The original itself would gain")
    assert headline["validation"]["spearman"] == 0.97


@sqlite_only
def test_all_that_compete_keep_to_the_bytes_of_the_best_uniform_config(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None]
) -> None:
    """The best uniform config of the menu may take less than the budget that was given: then all may take no more."""
    study_config["budgets"] = [{"bits_per_weight": 4.6}]
    study_config["phases"] = TO_CHOICE
    study = start(client, study_config)
    run_to_end()
    jobs = {job["step"]: job for job in look(client, study)["jobs"]}

    def allocations(name: str) -> list[dict[str, Any]]:
        ids = jobs[f"allocate:{name}"]["result"]["allocation_ids"]
        return [client.get(f"/api/v1/allocations/{id_}").json() for id_ in ids]

    (uniform,) = allocations("uniform")
    assert uniform["details"]["is_uniform"]
    assert uniform["matrix_bytes"] < uniform["budget_bytes"]
    candidates = allocations("uniforms")
    assert len(candidates) == study_config["validation"]["uniforms"]
    assert uniform["content_hash"] in {row["content_hash"] for row in candidates}
    for name in ("optimal", "rank0", "manual", "rtn", "random"):
        for row in allocations(name):
            assert row["budget_bytes"] == uniform["matrix_bytes"], name
            assert row["matrix_bytes"] <= uniform["matrix_bytes"]
    assert len(allocations("random")) == study_config["validation"]["random"]
    # judged against the bytes that it was allowed, not against those that nobody used
    gates = {gate["name"]: gate for gate in look(client, study)["gates"]}
    assert f"budget {uniform['matrix_bytes']:,}" in gates["bytes_match"]["explanation"]


def test_a_prediction_that_does_not_hold_is_measured_anew(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None], make_worker: Callable[..., Any]
) -> None:
    study_config["phases"] = TO_CHOICE
    study = start(client, study_config)
    run_to_end(make_worker(calibrated=False))
    study = look(client, study)
    assert study["state"] == "succeeded", study["reason"]
    jobs = {job["step"]: job for job in study["jobs"]}
    assert {jobs[step]["state"] for step in SECOND_CHOICE} == {"succeeded"}
    optimal = jobs["allocate:optimal"]["result"]["allocation_id"]
    assert jobs["sensitivity:reanchor"]["params"]["incumbent_allocation_id"] == optimal
    assert jobs["allocate:reanchored"]["params"]["incumbent_allocation_id"] == optimal
    chosen = jobs["allocate:chosen"]
    assert chosen["params"]["validation_id"] == jobs["validate:reanchored"]["result"]["validation_id"]
    second = client.get(f"/api/v1/allocations/{jobs['allocate:reanchored']['result']['allocation_id']}").json()
    assert second["objective"] == "reanchored"


@sqlite_only
def test_an_optimum_that_loses_on_the_select_split_is_not_recommended(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None], make_worker: Callable[..., Any]
) -> None:
    """Sensitivities that mislead: what they call best is worse than uniform on the text that chooses."""
    study_config["phases"] = TO_HEADLINE
    study = start(client, study_config)
    run_to_end(make_worker(validated_excess=lambda name, excess: 5 * excess if name == "optimal" else excess))
    headline = look(client, study)["headline"]
    assert headline["optimal_vs_uniform"]["recommended"] == "best uniform"
    assert headline["optimal_vs_uniform"]["guard"]["keeps_optimal"] is False
    assert "Best uniform is recommended: on the select split optimal did not beat" in headline["sentence"]
    assert "chosen" not in {row["name"] for row in headline["rows"]}


@sqlite_only
def test_a_study_without_validation_still_compares(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None]
) -> None:
    study_config["validation"] = {"enabled": False}
    study_config["phases"] = TO_HEADLINE
    study = start(client, study_config)
    run_to_end()
    study = look(client, study)
    assert study["state"] == "succeeded", study["reason"]
    assert not [job for job in study["jobs"] if job["kind"] == "validate"]
    headline = study["headline"]
    assert (headline["validation"], headline["optimal_vs_uniform"]["guard"]) == (None, None)
    assert headline["sentence"].startswith("optimal beats best uniform")
    # of the configs without a low-rank part none but the best uniform one itself is worth its bytes here
    assert headline["remarks"] == ["rank 0, optimal is the best uniform model itself at this budget."]


@sqlite_only
def test_a_second_run_reuses_what_is_measured(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None]
) -> None:
    study_config["phases"] = TO_HEADLINE
    first = start(client, study_config)
    run_to_end()
    count = len(client.get("/api/v1/measurements?limit=1000").json()["items"])
    second = start(client, study_config)
    assert second["id"] != first["id"]
    assert second["model_id"] == first["model_id"]
    run_to_end()
    assert len(client.get("/api/v1/measurements?limit=1000").json()["items"]) == count
    ends = [look(client, study) for study in (first, second)]
    evaluations = [{job["result"]["evaluation_id"] for job in end["jobs"] if job["kind"] == "evaluate"} for end in ends]
    assert evaluations[0] == evaluations[1]
    assert ends[0]["headline"]["rows"][2]["ppl"] == ends[1]["headline"]["rows"][2]["ppl"]


def test_no_go_stops_and_skips(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None], make_worker: Callable[..., Any]
) -> None:
    study_config["on_no_go"] = "stop"
    study = start(client, study_config)
    run_to_end(make_worker(sensitivity_of=lambda layer: 1.0))
    study = look(client, study)
    assert study["state"] == "stopped"
    assert "sensitivity_varies" in study["reason"]
    assert "Goodhart" in study["reason"], "the reason names the plan's fallback"
    states = {job["step"]: job["state"] for job in study["jobs"]}
    assert states["gate:0:sensitivity"] == "succeeded"
    assert states["sweep"] == states["gate:5"] == "skipped"
    assert study["finished_at"] is not None


@sqlite_only
def test_thresholds_come_from_the_study_and_no_go_goes_on_when_told_to(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None]
) -> None:
    study_config |= {"phases": [0, 1], "gates": {"sensitivity_ratio": 1e6}}
    study = start(client, study_config)
    run_to_end()
    study = look(client, study)
    gate = study["gates"][0]
    assert (gate["name"], gate["verdict"], gate["threshold"]) == ("sensitivity_varies", "NO-GO", 1e6)
    assert study["state"] == "succeeded"
    assert {job["state"] for job in study["jobs"]} == {"succeeded"}


@sqlite_only
def test_a_failed_sweep_fails_the_study_and_gates_say_not_measured(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None], make_worker: Callable[..., Any]
) -> None:
    study_config["phases"] = [1, 2, 3, 4]
    study = start(client, study_config)
    error = {"code": "non-finite-values", "message": "matrix 1.q holds NaN", "retryable": False}
    run_to_end(make_worker(failures={"sweep": error}))
    study = look(client, study)
    assert study["state"] == "failed"
    assert study["reason"].startswith("sweep (job_")
    assert "layer 0" in study["reason"]
    assert "(and 2 more): matrix 1.q holds NaN" in study["reason"]
    verdicts = {(gate["phase"], gate["name"]): gate["verdict"] for gate in study["gates"]}
    assert verdicts[1, "error_varies"] == verdicts[4, "optimal_beats_uniform"] == "NOT MEASURED"
    assert {job["step"]: job["state"] for job in study["jobs"]}["fit"] == "skipped"


@sqlite_only
def test_retry_goes_on_where_it_failed(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None], make_worker: Callable[..., Any]
) -> None:
    study_config["phases"] = TO_CHOICE
    study = start(client, study_config)
    run_to_end(make_worker(failures={"sweep": {"code": "x", "message": "broken", "retryable": False}}))
    sweep = next(job for job in look(client, study)["jobs"] if job["step"] == "sweep")
    assert client.post(f"/api/v1/jobs/{sweep['id']}/retry").status_code == 200
    assert look(client, study)["state"] == "running"
    run_to_end()
    jobs = {job["step"]: job["state"] for job in look(client, study)["jobs"]}
    assert (jobs["sweep"], jobs["allocate:chosen"], jobs["gate:3"]) == ("succeeded", "succeeded", "succeeded")


@sqlite_only
def test_gptq_competes_where_it_is_asked_for_and_a_baseline_that_does_not_fit_breaks_nothing(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None]
) -> None:
    study_config |= {"phases": TO_HEADLINE, "baselines": {"rtn": [8], "gptq": [2, 3]}}
    study = start(client, study_config)
    run_to_end()
    study = look(client, study)
    assert study["state"] == "succeeded", study["reason"]
    jobs = {job["step"]: job for job in study["jobs"]}
    assert {config["codebook"] for config in jobs["allocate:gptq"]["params"]["menu"]} == {"gptq"}
    rows = {row["name"]: row["label"] for row in study["headline"]["rows"]}
    assert rows["gptq"] == "GPTQ"
    rtn = jobs["allocate:rtn"]
    assert (rtn["state"], rtn["error"]["code"]) == ("failed", "infeasible-budget")
    assert rtn["error"]["smallest_bytes"] > study["headline"]["budget_bytes"]
    assert "rtn" not in rows


@sqlite_only
def test_a_budget_that_has_no_random_allocations_does_not_break_the_study(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None]
) -> None:
    study_config["grid"] |= {"b_q": [2], "rank": [0]}
    study_config |= {"phases": [1, 3, 4], "phase0": None, "objective": "error", "baselines": {"rtn": []}}
    study_config["budgets"] = []
    study = start(client, study_config)
    run_to_end()
    study = look(client, study)
    jobs = {job["step"]: job for job in study["jobs"]}
    assert jobs["allocate:random"]["state"] == "failed"
    assert study["state"] == "succeeded", study["reason"]
    evaluated = {jobs[f"evaluate:{name}:stdlib"]["result"]["value"] for name in ("uniform", "optimal", "chosen")}
    assert len(evaluated) == 1


def test_cancel(client: TestClient, study_config: Config, run_to_end: Callable[..., None]) -> None:
    study = start(client, study_config)
    assert client.post(f"/api/v1/studies/{study['id']}/cancel").json()["state"] == "cancelled"
    run_to_end()
    study = look(client, study)
    assert study["state"] == "cancelled"
    assert {job["state"] for job in study["jobs"]} == {"cancelled"}
    assert client.post(f"/api/v1/studies/{study['id']}/cancel").status_code == 409


@sqlite_only
def test_only_some_phases(client: TestClient, study_config: Config, run_to_end: Callable[..., None]) -> None:
    study_config["phases"] = [1, 2]
    study = start(client, study_config)
    assert [job["step"] for job in study["jobs"]] == ["calibrate", "sweep", "gate:1", "fit", "gate:2"]
    run_to_end()
    study = look(client, study)
    assert (study["state"], study["headline"]) == ("succeeded", None)


@sqlite_only
def test_a_fit_that_falls_short_is_interpolated_instead(
    client: TestClient, study_config: Config, run_to_end: Callable[..., None], make_worker: Callable[..., Any]
) -> None:
    """Rank helps the more, the more bits there are: no sum of two terms says that."""
    study_config |= {"phases": [1, 2], "gates": {"fit_r2": 0.999}}
    study = start(client, study_config)

    def error(config: Any, layer: int) -> float:
        return 2.0**-config.b_q * (1 + layer) * (1 + config.rank) ** (2.0 - config.b_q)

    run_to_end(make_worker(error_of=error))
    study = look(client, study)
    fit = next(job for job in study["jobs"] if job["step"] == "fit")
    fallback = client.get(f"/api/v1/fits/{fit['result']['fallback_fit_id']}").json()
    assert fallback["form"] == "monotone"
    gate = next(gate for gate in study["gates"] if gate["name"] == "fit_explains")
    assert gate["threshold"] == 0.6
    assert "non-parametric" in gate["explanation"]
    assert [gate["name"] for gate in study["gates"]] == [
        *("error_varies", "profiles_differ", "collection_complete"),
        *("fit_explains", "parameters_physical", "fit_generalises"),
    ]


@sqlite_only
def test_a_hub_model_is_fetched_first(client: TestClient, study_config: Config) -> None:
    study_config["model"] = {"source": "org/name", "revision": "a" * 40}
    jobs = start(client, study_config)["jobs"]
    assert jobs[0]["step"] == "fetch"
    assert all(job["inputs"]["model_id"]["job"] == jobs[0]["id"] for job in jobs[1:] if job["kind"] != "gate")
    assert len(client.get("/api/v1/jobs?kind=fetch").json()["items"]) == 1


def test_a_retry_just_before_the_end_wins(app: FastAPI, client: TestClient, study_config: Config) -> None:
    study = start(client, study_config)
    with app.state.database.write() as session:
        finish_study(session, study["id"])  # decided on what was read a moment before: a job lives again
    seen = look(client, study)
    assert (seen["state"], seen["finished_at"]) == ("running", None)
