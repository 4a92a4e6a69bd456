"""Fits, allocations, measurements and evaluations computed from rows of the database."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from compress_core.allocate import overrides_from_yaml
from compress_core.nbytes import predicted_nbytes
from tests.server.allocating import Ids, allocate
from tests.server.conftest import register

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def client(standing_measured: TestClient) -> TestClient:
    """Nothing here but allocations and jobs that nobody runs is added, unless a test asks for ``fresh_client``."""
    return standing_measured


def refused(client: TestClient, noun: str, body: dict[str, Any], slug: str, status: int = 422) -> dict[str, Any]:
    answer = client.post(f"/api/v1/{noun}", json=body)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:bitbudget:problem:{slug}"), answer.text
    return dict(answer.json())


def test_an_optimal_allocation(client: TestClient, measured_model: Ids) -> None:
    uniform = allocate(client, measured_model, kind="uniform", uniform={"b_q": 3, "rank": 4})
    optimal = allocate(client, measured_model, budget={"uniform": {"b_q": 3, "rank": 4}})
    assert optimal["kind"] == "optimal"
    assert optimal["optimal"] is True
    assert optimal["budget_bytes"] == uniform["matrix_bytes"]
    assert optimal["total_bytes"] <= optimal["budget_bytes"]
    assert optimal["lower_bound"] <= optimal["objective_value"]
    assert optimal["n_distinct_configs"] > 1
    assert sum(item["nbytes"] for item in optimal["items"]) == optimal["matrix_bytes"]
    bits = {layer: [i["b_q"] for i in optimal["items"] if i["layer_idx"] == layer] for layer in range(3)}
    assert sum(bits[2]) > sum(bits[0]), "the most sensitive layer gets more"
    found = client.get(f"/api/v1/allocations/{optimal['id']}").json()
    assert found | {"allocation_ids": [optimal["id"]]} == optimal
    answer = client.get(f"/api/v1/allocations/{optimal['id']}/overrides.yaml")
    assert answer.headers["content-type"].startswith("application/yaml")
    overrides = overrides_from_yaml(answer.text)
    assert {str(key): config.config_hash for key, config in overrides.items()} == {
        f"{i['layer_idx']}.{i['projection']}": i["config_hash"] for i in optimal["items"]
    }
    same = allocate(client, measured_model, kind="overrides", overrides_yaml=answer.text)
    assert same["content_hash"] == optimal["content_hash"]
    assert same["matrix_bytes"] == optimal["matrix_bytes"]


@sqlite_only
def test_best_uniform_and_a_rival(client: TestClient, measured_model: Ids) -> None:
    best = allocate(client, measured_model, kind="best_uniform", budget={"uniform": {"b_q": 3, "rank": 4}})
    # 4 bits without factors are smaller and better than 3 bits with rank 4
    assert {(i["b_q"], i["rank"]) for i in best["items"]} == {(4, 0)}
    assert best["total_bytes"] < best["budget_bytes"]
    rival = allocate(client, measured_model, budget={"uniform": {"b_q": 3, "rank": 4}}, budget_allocation_id=best["id"])
    assert rival["budget_bytes"] == best["total_bytes"]
    assert rival["total_bytes"] <= best["total_bytes"]
    assert rival["objective_value"] <= best["objective_value"]


@sqlite_only
def test_uniform_clamps_and_records_it(client: TestClient, measured_model: Ids, model: dict[str, Any]) -> None:
    found = allocate(client, measured_model, kind="uniform", uniform={"b_q": 2, "rank": 20})
    clamped = {i["projection"] for i in found["items"] if i["requested_rank"] is not None}
    assert clamped == {"k", "v"}, "their smaller side is 16"
    for item in found["items"]:
        assert item["rank"] == (16 if item["projection"] in clamped else 20)
        assert item["requested_rank"] == (20 if item["projection"] in clamped else None)
        assert item["error"] is None, "this config is not measured"
    assert len(found["details"]["clamped"]) == 6
    for item, matrix in zip(found["items"], model["matrices"], strict=True):
        config = overrides_from_yaml(found["overrides_yaml"])
        key = next(k for k in config if (k.layer_idx, k.projection) == (matrix["layer_idx"], matrix["projection"]))
        assert item["nbytes"] == predicted_nbytes(config[key], matrix["out_features"], matrix["in_features"])


@sqlite_only
def test_scopes_and_budgets(client: TestClient, measured_model: Ids, model: dict[str, Any]) -> None:
    n_weights = sum(m["out_features"] * m["in_features"] for m in model["matrices"])
    for budget in ({"bits_per_weight": 4.5}, {"bytes": int(4.5 * n_weights / 8)}, {"gb": 4.5 * n_weights / 8e9}):
        decoder = allocate(client, measured_model, budget=budget)
        assert decoder["budget_bytes"] == pytest.approx(4.5 * n_weights / 8, abs=1)
    whole = allocate(client, measured_model, scope="model", budget={"bits_per_weight": 4.5})
    assert whole["budget_bytes"] == int(4.5 * n_weights / 8) + model["fixed_bytes"]
    assert whole["total_bytes"] == whole["matrix_bytes"] + model["fixed_bytes"]
    assert whole["matrix_bytes"] == decoder["matrix_bytes"]
    by_error = allocate(client, measured_model, objective="error", budget={"bits_per_weight": 4.5})
    assert by_error["items"][0]["sensitivity"] is None
    assert by_error["content_hash"] != decoder["content_hash"]


@sqlite_only
def test_manual(client: TestClient, measured_model: Ids) -> None:
    manual = allocate(
        client,
        measured_model,
        kind="manual",
        high={"b_q": 3, "rank": 16},
        low={"b_q": 2, "rank": 0},
        budget={"uniform": {"b_q": 2, "rank": 12}},
    )
    high = manual["details"]["high_layers"]
    assert high == sorted(high, reverse=True), "the later layers are more sensitive"
    assert {i["b_q"] for i in manual["items"] if i["layer_idx"] in high} <= {3}
    assert manual["total_bytes"] <= manual["budget_bytes"]


@sqlite_only
def test_allocations_that_cannot_be(client: TestClient, measured_model: Ids, model: dict[str, Any]) -> None:
    ask: dict[str, Any] = {"model_id": model["id"], "name": "x"}
    smallest = allocate(client, measured_model, kind="uniform", uniform={"b_q": 2, "rank": 0})["matrix_bytes"]
    low = {"budget": {"bytes": smallest - 1}}
    assert refused(client, "allocations", ask | low, "infeasible-budget")["smallest_bytes"] == smallest
    whole = refused(client, "allocations", ask | low | {"scope": "model"}, "infeasible-budget")
    assert whole["smallest_bytes"] == smallest + model["fixed_bytes"]
    best = refused(client, "allocations", ask | low | {"kind": "best_uniform"}, "infeasible-budget")
    assert best["smallest_bytes"] == smallest
    for change, slug, field in (
        ({"budget": {"bytes": 1, "gb": 1}}, "invalid-request", "budget"),
        ({"budget": {"bytes": -1}}, "invalid-request", "budget.bytes"),
        ({}, "invalid-request", "budget"),
        ({"kind": "uniform"}, "invalid-request", "uniform"),
        ({"kind": "uniform", "uniform": {"b_q": 2, "rank": -1}}, "invalid-config", "uniform.rank"),
        ({"kind": "uniform", "uniform": {"b_q": 1}}, "invalid-config", "uniform.b_q"),
        ({"kind": "overrides"}, "invalid-request", "overrides_yaml"),
        ({"kind": "overrides", "overrides_yaml": "a: ["}, "invalid-config", "overrides_yaml"),
        ({"budget": {"gb": 1}, "menu": [{"b_q": 2, "codebook": "x"}]}, "invalid-config", "menu.0.codebook"),
    ):
        assert refused(client, "allocations", ask | change, slug)["errors"][0]["field"] == field, change


@sqlite_only
def test_a_compression_takes_overrides_as_they_are(client: TestClient, measured_model: Ids) -> None:
    optimal = allocate(client, measured_model, budget={"bits_per_weight": 4.0})
    text = client.get(f"/api/v1/allocations/{optimal['id']}/overrides.yaml").text
    ask = {"model_id": measured_model["model_id"], "overrides_yaml": text}
    answer = client.post("/api/v1/compressions", json=ask)
    assert answer.status_code == 202, answer.text
    params = answer.json()["params"]
    assert "overrides_yaml" not in params
    stored = client.get(f"/api/v1/allocations/{params['allocation_id']}").json()
    assert (stored["kind"], stored["content_hash"]) == ("overrides", optimal["content_hash"])
    both = client.post("/api/v1/compressions", json=ask | {"allocation_id": optimal["id"]})
    assert both.json()["errors"][0]["field"] == "overrides_yaml"
    wrong = client.post("/api/v1/compressions", json=ask | {"overrides_yaml": text.replace("0.q:", "99.q:")})
    assert wrong.status_code == 422
    assert "99.q" in wrong.text


def test_explicit_overrides_are_held_to_the_shapes(client: TestClient, model: dict[str, Any]) -> None:
    def overrides(rank: int, projection: str = "k") -> dict[str, Any]:
        matrices = {f"{m['layer_idx']}.{m['projection']}": {"b_q": 2} for m in model["matrices"]}
        matrices[f"0.{projection}"] = {"b_q": 2, "rank": rank}
        text = yaml.safe_dump({"version": 1, "matrices": matrices})
        return {"model_id": model["id"], "name": "x", "kind": "overrides", "overrides_yaml": text}

    assert client.post("/api/v1/allocations", json=overrides(16)).status_code == 201
    assert "0.k" in refused(client, "allocations", overrides(17), "rank-too-large")["detail"]
    assert "rank" in refused(client, "allocations", overrides(-1), "invalid-config")["detail"]
    assert "w" in refused(client, "allocations", overrides(1, "w"), "invalid-config")["detail"]
    partial = overrides(1) | {"overrides_yaml": "version: 1\nmatrices: {0.q: {b_q: 2}}"}
    assert "0.k" in refused(client, "allocations", partial, "invalid-request")["detail"]


@sqlite_only
def test_what_is_missing_is_named(fresh_client: TestClient, checkpoint: Path, run_to_end: Callable[..., None]) -> None:
    ask: dict[str, Any] = {"model_id": register(fresh_client, checkpoint)["id"]}
    budget = {"name": "x", "budget": {"gb": 1}}
    refused(fresh_client, "sweeps", ask | {"configs": [{"b_q": 2}]}, "calibration-missing", 409)
    refused(fresh_client, "allocations", ask | budget, "calibration-missing", 409)
    fresh_client.post("/api/v1/calibrations", json=ask)
    run_to_end()
    refused(fresh_client, "allocations", ask | budget, "nothing-measured", 409)
    fresh_client.post("/api/v1/sweeps", json=ask | {"configs": [{"b_q": 2}]})
    run_to_end()
    refused(fresh_client, "allocations", ask | budget, "sensitivity-missing", 409)
    assert fresh_client.post("/api/v1/allocations", json=ask | budget | {"objective": "error"}).status_code == 201


@sqlite_only
def test_sweeps(client: TestClient, measured_model: Ids, model: dict[str, Any]) -> None:
    sweep = client.get("/api/v1/sweeps").json()["items"][0]
    found = client.get(f"/api/v1/sweeps/{sweep['id']}").json()
    assert found["n_recorded"] == found["n_cells"] == 21 * 12
    assert found["state"] == "succeeded"
    ask: dict[str, Any] = {"model_id": model["id"], "configs": [{"b_q": 2}]}
    for change, slug, field in (
        ({"configs": []}, "invalid-request", "configs"),
        ({"configs": [{"b_q": 2}, {"b_q": 2, "rank": -3}]}, "invalid-config", "configs.1.rank"),
        ({"configs": [{"bits": 2}]}, "invalid-config", "configs.0.bits"),
        ({"matrices": {"projections": ["w"]}}, "unknown-matrix", "matrices.projections"),
        ({"matrices": {"layers": [3]}}, "unknown-matrix", "matrices.layers"),
        ({"matrices": {"layers": []}}, "invalid-request", "matrices"),
    ):
        assert refused(client, "sweeps", ask | change, slug)["errors"][0]["field"] == field, change


@sqlite_only
def test_sensitivities(client: TestClient, measured_model: Ids) -> None:
    rows = client.get("/api/v1/sensitivities/anchors?projection=q&layer_idx=2&method=kl_anchor").json()["items"]
    assert len(rows) == 2, "one a matrix and anchor"
    assert rows[0]["sensitivity"] == pytest.approx(0.05 * 36)
    assert client.get("/api/v1/sensitivities?projection=w").status_code == 422


def test_measurement_filters_and_exports(client: TestClient, measured_model: Ids) -> None:
    def count(query: str) -> int:
        return len(client.get(f"/api/v1/measurements?limit=1000&{query}").json()["items"])

    assert count("") == 21 * 12
    assert count("codebook=rtn") == 21 * 3
    assert count("codebook=trellis&states=1024") == 21 * 9
    assert count("states=256") == 0
    assert count("projection=q&b_q=2&rank=4") == 3
    assert count("layer_idx=1&rank=12") == 7 * 3
    assert client.get("/api/v1/measurements?projection=w").status_code == 422
    lines = client.get("/api/v1/measurements/export?codebook=rtn").text.splitlines()
    schema, *rows = [json.loads(line) for line in lines]
    assert schema["schema"]["export"] == "measurements"
    assert len(rows) == 21 * 3
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    answer = client.get("/api/v1/measurements/export?format=csv&codebook=rtn")
    assert answer.headers["content-type"].startswith("text/csv")
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(table) == 21 * 3
    assert float(table[0]["calibration_weighted_error"]) == rows[0]["calibration_weighted_error"]
    assert json.loads(table[0]["config"]) == rows[0]["config"]
    assert client.get("/api/v1/measurements/export?format=xml").status_code == 422


def test_compressions_and_evaluations(
    fresh_client: TestClient, measured_model: Ids, run_to_end: Callable[..., None]
) -> None:
    ask: dict[str, Any] = {"model_id": measured_model["model_id"]}
    fine = allocate(fresh_client, measured_model, kind="uniform", uniform={"b_q": 4})
    coarse = allocate(fresh_client, measured_model, kind="uniform", uniform={"b_q": 2})
    for allocation in (fine, coarse):
        answer = fresh_client.post("/api/v1/compressions", json=ask | {"allocation_id": allocation["id"]})
        assert answer.status_code == 202, answer.text
    run_to_end()
    packed = {c["allocation_id"]: c for c in fresh_client.get("/api/v1/compressions").json()["items"]}
    assert packed[fine["id"]]["actual_bytes"] == fine["matrix_bytes"] + fine["fixed_bytes"]
    for body in ({}, *({"compression_id": c["id"]} for c in packed.values())):
        assert fresh_client.post("/api/v1/evaluations", json=ask | body).status_code == 202
    short = {"compression_id": None, "windows": {"length": 64}}
    assert fresh_client.post("/api/v1/evaluations", json=ask | short).status_code == 202
    run_to_end()
    rows = fresh_client.get("/api/v1/evaluations?order=asc").json()["items"]
    by_compression = {e["compression_id"]: e for e in rows[:3]}
    a = by_compression[packed[coarse["id"]]["id"]]
    b = by_compression[packed[fine["id"]]["id"]]
    found = fresh_client.get(f"/api/v1/evaluations/compare?a={a['id']}&b={b['id']}").json()
    assert found["verdict"] == "better"
    assert found["low"] < found["relative_ppl_change"] < found["high"] < 0
    assert found["relative_ppl_change"] == pytest.approx(b["value"] / a["value"] - 1)
    unequal = fresh_client.get(f"/api/v1/evaluations/compare?a={a['id']}&b={rows[3]['id']}")
    assert unequal.json()["type"] == "urn:bitbudget:problem:not-comparable"
    assert fresh_client.get(f"/api/v1/evaluations/compare?a={a['id']}&b=none").status_code == 404
    assert fresh_client.get(f"/api/v1/evaluations/{a['id']}").json() == a


@sqlite_only
def test_requests_that_name_the_wrong_thing(client: TestClient, measured_model: Ids) -> None:
    ask: dict[str, Any] = {"model_id": measured_model["model_id"]}
    refused(client, "compressions", ask, "invalid-request")
    refused(client, "compressions", ask | {"allocation_id": "none"}, "not-found", 404)
    packing = ask | {"allocation_id": allocate(client, measured_model, kind="uniform", uniform={"b_q": 4})["id"]}
    for head, why in (({"b_q": 9}, "has no b_q = 9"), ({"b_q": 4}, "tied to the token embedding")):
        assert why in refused(client, "compressions", packing | {"head": head}, "invalid-request")["detail"]
    refused(client, "evaluations", ask | {"compression_id": "none"}, "not-found", 404)
    refused(client, "evaluations", ask | {"split": "train"}, "invalid-request")
    refused(client, "evaluations", ask | {"text": {"kind": "file"}}, "invalid-request")
    refused(client, "evaluations", ask | {"text": {"kind": "file", "path": "/etc/hosts"}}, "path-not-allowed", 403)
    refused(client, "sensitivities", ask | {"anchors": []}, "invalid-request")
    refused(client, "sensitivities", ask | {"anchors": [{"b_q": 9}]}, "invalid-config")


@pytest.mark.parametrize("bits", [None, 4.0, "4", {"a": 1}, [4, 4, 4], [[4], [4]], True])
@sqlite_only
def test_factor_bits_of_another_type_are_refused(client: TestClient, model: dict[str, Any], bits: Any) -> None:
    body = {"model_id": model["id"], "name": "x", "kind": "uniform", "uniform": {"b_q": 2, "factor_bits": bits}}
    answer = client.post("/api/v1/allocations", json=body)
    assert (answer.status_code, answer.json()["type"].rsplit(":", 1)[-1]) == (422, "invalid-config"), answer.text


@pytest.mark.parametrize("codebook", [[], {}, None, 4])
@sqlite_only
def test_a_codebook_of_another_type_is_refused(client: TestClient, model: dict[str, Any], codebook: Any) -> None:
    body = {"model_id": model["id"], "name": "x", "kind": "uniform", "uniform": {"b_q": 2, "codebook": codebook}}
    assert client.post("/api/v1/allocations", json=body).json()["type"].endswith(":invalid-config")


@pytest.mark.parametrize(
    "budget", ['{"gb": Infinity}', '{"gb": NaN}', '{"bytes": 1e30}', '{"bits_per_weight": 1e300}', '{"gb": 1e300}']
)
@sqlite_only
def test_a_budget_beyond_every_model_is_refused(client: TestClient, model: dict[str, Any], budget: str) -> None:
    body = (
        f'{{"model_id": "{model["id"]}", "name": "x", "kind": "uniform", "uniform": {{"b_q": 2}}, "budget": {budget}}}'
    )
    answer = client.post("/api/v1/allocations", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"].startswith("budget")


@sqlite_only
def test_a_seed_beyond_its_column_is_refused(client: TestClient, model: dict[str, Any]) -> None:
    answer = client.post("/api/v1/calibrations", json={"model_id": model["id"], "windows": {"seed": 2**31}})
    assert answer.json()["errors"][0]["field"] == "windows.seed"


@sqlite_only
@pytest.mark.parametrize("scope", ["decoder", "model"])
def test_a_given_allocation_keeps_to_its_budget(client: TestClient, model: dict[str, Any], scope: str) -> None:
    body = {"model_id": model["id"], "name": "x", "kind": "uniform", "uniform": {"b_q": 2}, "scope": scope}
    refused = client.post("/api/v1/allocations", json=body | {"budget": {"bytes": 10}})
    assert (refused.status_code, refused.json()["type"].rsplit(":", 1)[-1]) == (422, "infeasible-budget")
    smallest = refused.json()["smallest_bytes"]
    yaml = client.post("/api/v1/allocations", json=body | {"budget": {"bytes": smallest}}).json()["overrides_yaml"]
    given = body | {"kind": "overrides", "overrides_yaml": yaml, "budget": {"bytes": smallest - 1}}
    assert client.post("/api/v1/allocations", json=given).json()["smallest_bytes"] == smallest


@sqlite_only
def test_an_unknown_config_field_is_the_one_named(client: TestClient, model: dict[str, Any]) -> None:
    body = {"model_id": model["id"], "name": "x", "kind": "uniform", "uniform": {"b_q": 2, "bogus": 1}}
    assert client.post("/api/v1/allocations", json=body).json()["errors"][0]["field"] == "uniform.bogus"
