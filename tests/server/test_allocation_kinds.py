"""Kinds of allocation besides optimal, uniform and manual, constraints, and every way to say a budget."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server.allocating import BUDGET, MENU, Ids, allocate, refused

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def client(standing_measured: TestClient) -> TestClient:
    """Nothing here but allocations is added."""
    return standing_measured


def rows_of(client: TestClient, found: dict[str, Any]) -> list[dict[str, Any]]:
    return [client.get(f"/api/v1/allocations/{id_}").json() for id_ in found["allocation_ids"]]


@pytest.mark.parametrize("kind", ["greedy", "minimax", "discretised_dp"])
@sqlite_only
def test_baselines_stay_within_the_budget_and_lose(client: TestClient, measured_model: Ids, kind: str) -> None:
    optimal = allocate(client, measured_model, budget=BUDGET, menu=MENU)
    found = allocate(client, measured_model, kind=kind, budget=BUDGET, menu=MENU)
    assert found["kind"] == kind
    assert found["total_bytes"] <= found["budget_bytes"] == optimal["budget_bytes"]
    assert found["objective_value"] >= optimal["objective_value"] * (1 - 1e-12)
    assert found["details"]["loss"] == pytest.approx(found["objective_value"] / optimal["objective_value"] - 1)
    assert (found["optimal"], found["lower_bound"]) == (None, None), "it proves nothing"


def test_random_allocations_are_a_row_each(client: TestClient, measured_model: Ids) -> None:
    optimal = allocate(client, measured_model, budget=BUDGET, menu=MENU)
    ask = {"kind": "random", "budget": BUDGET, "menu": MENU, "count": 6, "near": 2, "seed": 3, "within": 0.01}
    rows = rows_of(client, allocate(client, measured_model, **ask))
    assert [row["name"] for row in rows] == [f"test-{n:02d}" for n in range(1, 7)]
    assert [row["kind"] for row in rows] == ["random"] * 4 + ["near_optimal"] * 2
    assert len({row["content_hash"] for row in rows}) == 6
    for row in rows:
        assert 0.99 * optimal["budget_bytes"] <= row["matrix_bytes"] <= optimal["budget_bytes"]
        assert row["seed"] == 3
        assert row["objective"] is None, "nothing was minimised"
        assert row["predicted_kl"] >= optimal["predicted_kl"] * (1 - 1e-12)
    again = rows_of(client, allocate(client, measured_model, **ask))
    assert [row["content_hash"] for row in again] == [row["content_hash"] for row in rows], "the seed says it all"


@sqlite_only
def test_what_random_cannot_do_is_refused_by_name(client: TestClient, measured_model: Ids) -> None:
    ask: dict[str, Any] = {"kind": "random", "budget": BUDGET, "menu": MENU}
    assert "near" in refused(client, measured_model, "invalid-request", **ask, count=2, near=3)["detail"]
    odd = ask | {"budget": {"bytes": allocate(client, measured_model, budget=BUDGET)["budget_bytes"] + 1}}
    assert "raise within" in refused(client, measured_model, "invalid-config", **odd, within=1e-9)["detail"]
    tiny = ask | {"budget": {"bytes": 100}}
    assert refused(client, measured_model, "infeasible-budget", **tiny)["smallest_bytes"] > 100


@sqlite_only
def test_uniforms_by_their_objective(client: TestClient, measured_model: Ids) -> None:
    best = allocate(client, measured_model, kind="best_uniform", budget=BUDGET, menu=MENU)
    rows = rows_of(client, allocate(client, measured_model, kind="uniforms", budget=BUDGET, menu=MENU, count=3))
    assert rows[0]["content_hash"] == best["content_hash"]
    values = [row["objective_value"] for row in rows]
    assert values == sorted(values)
    assert {row["kind"] for row in rows} == {"uniform"}
    assert all(row["details"]["is_uniform"] and row["total_bytes"] <= row["budget_bytes"] for row in rows)
    every = rows_of(client, allocate(client, measured_model, kind="uniforms", budget=BUDGET, menu=MENU))
    assert len(every) == every[0]["details"]["fitting"] > 3
    assert refused(client, measured_model, "infeasible-budget", kind="uniforms", budget={"bytes": 9})["smallest_bytes"]


def test_predicted_kl_is_the_sum_of_the_items(client: TestClient, measured_model: Ids) -> None:
    by_error = allocate(client, measured_model, budget=BUDGET, menu=MENU, objective="error")
    by_kl = allocate(client, measured_model, budget=BUDGET, menu=MENU)
    assert by_kl["predicted_kl"] == pytest.approx(by_kl["objective_value"])
    assert by_kl["predicted_kl"] == pytest.approx(math.fsum(i["error"] * i["sensitivity"] for i in by_kl["items"]))
    assert by_error["predicted_kl"] > by_kl["predicted_kl"]
    rtn = allocate(client, measured_model, kind="uniform", uniform={"b_q": 4, "codebook": "rtn"})
    assert rtn["predicted_kl"] > 0, "a baseline is predicted too, where it is measured"
    assert allocate(client, measured_model, kind="uniform", uniform={"b_q": 2, "rank": 9})["predicted_kl"] is None


@sqlite_only
def test_regret_bounds_what_another_config_costs(client: TestClient, measured_model: Ids) -> None:
    """Forbid the chosen config of a matrix: the new optimum is worse by at least the regret."""
    optimal = allocate(client, measured_model, budget=BUDGET, menu=MENU)
    for item in (optimal["items"][0], optimal["items"][13], optimal["items"][20]):
        veto = {
            "matrices": {"layers": [item["layer_idx"]], "projections": [item["projection"]]},
            "configs": {"b_q": [item["b_q"]], "rank": [item["rank"]]},
        }
        other = allocate(client, measured_model, budget=BUDGET, menu=MENU, constraints={"vetoes": [veto]})
        rise = other["objective_value"] - optimal["objective_value"]
        assert item["regret"] <= rise * (1 + 1e-9)
    assert any(item["regret"] > 0 for item in optimal["items"])


def test_constraints_are_kept_and_stored(client: TestClient, measured_model: Ids) -> None:
    constraints = {
        "pins": [{"matrices": {"layers": [0], "projections": ["down"]}, "config": {"b_q": 4, "rank": 12}}],
        "vetoes": [{"matrices": {"layers": ["1-2"]}, "configs": {"b_q": [2]}}],
        "groups": [{"projections": ["q", "k", "v"]}],
        "max_configs": 3,
    }
    free = allocate(client, measured_model, budget=BUDGET, menu=MENU)
    found = allocate(client, measured_model, budget=BUDGET, menu=MENU, constraints=constraints)
    assert found["constraints"] == constraints
    assert found["objective_value"] >= free["objective_value"]
    assert found["total_bytes"] <= found["budget_bytes"]
    configs = {(i["layer_idx"], i["projection"]): (i["b_q"], i["rank"]) for i in found["items"]}
    assert configs[0, "down"] == (4, 12)
    assert all(b_q > 2 for (layer, _), (b_q, _) in configs.items() if layer > 0)
    assert all(configs[layer, "q"] == configs[layer, "k"] == configs[layer, "v"] for layer in range(3))
    assert found["n_distinct_configs"] <= 3
    assert all(item["regret"] is None or item["regret"] >= 0 for item in found["items"])


@sqlite_only
def test_a_pin_takes_what_it_leaves_out_from_the_menu(client: TestClient, measured_model: Ids) -> None:
    # 12 is no default rank, and one config of this menu alone has 4 bits
    menu = [{"b_q": 2, "rank": 4}, {"b_q": 3, "rank": 4}, {"b_q": 4, "rank": 12}]
    pins = {"pins": [{"matrices": {"layers": [0], "projections": ["q"]}, "config": {"b_q": 4}}]}
    found = allocate(client, measured_model, budget=BUDGET, menu=menu, constraints=pins)
    configs = {(i["layer_idx"], i["projection"]): (i["b_q"], i["rank"]) for i in found["items"]}
    assert configs[0, "q"] == (4, 12)


@pytest.mark.parametrize(
    ("constraints", "slug", "field"),
    [
        ({"pins": [{"config": {"b_q": 1}}]}, "invalid-config", "constraints.pins.0"),
        ({"pins": [{"config": {"b_q": 4, "rank": 5}}]}, "invalid-config", "constraints.pins.0"),
        ({"pins": [{"config": {"b_q": 4}}]}, "invalid-config", "constraints.pins.0.config"),
        ({"pin": []}, "invalid-request", "constraints.pin"),
        ({"vetoes": [{"configs": {}}]}, "invalid-config", "constraints.vetoes.0"),
        (
            {"vetoes": [{"configs": {"b_q": [2]}, "matrices": {"projections": ["w"]}}]},
            "invalid-config",
            "constraints.vetoes.0",
        ),
        ({"vetoes": [{"configs": {"b_q": [2, 3, 4]}}]}, "invalid-config", "constraints.vetoes.0"),
        ({"limits": [{"matrices": {"layers": [7]}, "min_b_q": 3}]}, "unknown-matrix", "constraints.limits.0"),
        ({"limits": [{}]}, "invalid-config", "constraints.limits.0"),
        ({"limits": [{"min_b_q": -1}]}, "invalid-request", "constraints.limits.0.min_b_q"),
        ({"groups": [{"projections": ["q"]}]}, "invalid-config", "constraints.groups.0"),
        ({"max_configs": 0}, "invalid-request", "constraints.max_configs"),
    ],
)
@sqlite_only
def test_a_constraint_that_cannot_hold_is_named(
    client: TestClient, measured_model: Ids, constraints: dict[str, Any], slug: str, field: str
) -> None:
    found = refused(client, measured_model, slug, budget=BUDGET, menu=MENU, constraints=constraints)
    assert found["errors"][0]["field"] == field


@sqlite_only
def test_constraints_can_make_a_budget_too_small(client: TestClient, measured_model: Ids) -> None:
    limits = {"limits": [{"min_b_q": 4}]}
    found = refused(client, measured_model, "infeasible-budget", budget={"bits_per_weight": 3}, constraints=limits)
    assert "limit" in found["detail"]
    enough = allocate(client, measured_model, budget={"bytes": found["smallest_bytes"]}, constraints=limits)
    assert enough["matrix_bytes"] == found["smallest_bytes"], "it is the smallest that fits"
    field = refused(client, measured_model, "invalid-request", kind="greedy", budget=BUDGET, constraints=limits)
    assert field["errors"][0]["field"] == "constraints"


@sqlite_only
def test_a_fraction_is_of_everything_in_the_scope(client: TestClient, measured_model: Ids, model: Any) -> None:
    original = sum(m["nbytes"] for m in model["matrices"])
    decoder = allocate(client, measured_model, budget={"fraction": 0.2})
    assert decoder["budget_bytes"] == original // 5
    whole = allocate(client, measured_model, scope="model", budget={"fraction": 0.7})
    assert whole["budget_bytes"] == int(0.7 * (original + model["fixed_bytes"]))
    assert refused(client, measured_model, "invalid-request", budget={"fraction": 1.5})["errors"][0]["field"]
    both = refused(client, measured_model, "invalid-request", budget={"fraction": 0.5, "gb": 1})
    assert both["errors"][0]["field"] == "budget"
    small = refused(client, measured_model, "infeasible-budget", scope="model", budget={"bytes": 1000})
    assert "embeddings" in small["detail"]
    assert small["smallest_bytes"] > model["fixed_bytes"]


@sqlite_only
def test_a_validation_is_of_one_model(client: TestClient, measured_model: Ids) -> None:
    ask = {"model_id": measured_model["model_id"], "name": "x"}
    for body, status in (({"allocation_ids": []}, 422), ({"allocation_ids": ["none"]}, 404), ({}, 422)):
        assert client.post("/api/v1/validations", json=ask | body).status_code == status
    one = allocate(client, measured_model, kind="uniform", uniform={"b_q": 2})
    report = client.post("/api/v1/validations", json=ask | {"allocation_ids": [one["id"]], "split": "report"})
    assert report.status_code == 422, "what chooses must not be what judges"
