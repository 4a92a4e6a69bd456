"""The frontier in one call, and what a pin, more bytes or another choice would cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.server.allocating import BUDGET, MENU, Ids, allocate

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def client(standing_measured: TestClient) -> TestClient:
    """Nothing here but allocations is added."""
    return standing_measured


def ask(client: TestClient, what: str, ids: Ids, **params: Any) -> dict[str, Any]:
    answer = client.post(f"/api/v1/allocations/{what}", json={"model_id": ids["model_id"], "menu": MENU} | params)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(client: TestClient, what: str, ids: Ids, slug: str, status: int = 422, **params: Any) -> dict[str, Any]:
    answer = client.post(f"/api/v1/allocations/{what}", json={"model_id": ids["model_id"], "menu": MENU} | params)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:bitbudget:problem:{slug}"), answer.text
    return dict(answer.json())


def test_the_frontier_is_what_the_solver_finds_at_its_points(
    client: TestClient, measured_model: Ids, model: Any
) -> None:
    found = ask(client, "frontier", measured_model)
    points = found["points"]
    assert len(points) == found["n_points"] > 20
    assert found["original_matrix_bytes"] == sum(m["nbytes"] for m in model["matrices"])
    nbytes = [point["matrix_bytes"] for point in points]
    assert nbytes == sorted(set(nbytes))
    prices = [point["shadow_price"] for point in points[1:]]
    assert points[0]["shadow_price"] is None
    assert prices == sorted(prices, reverse=True), "every further byte is worth less"
    for point in (points[0], points[7], points[-1]):
        exact = allocate(client, measured_model, menu=MENU, budget={"bytes": point["matrix_bytes"]})
        assert exact["objective_value"] == pytest.approx(point["objective_value"], rel=1e-9)
        assert exact["matrix_bytes"] == point["matrix_bytes"]
        assert exact["bits_per_weight"] == pytest.approx(point["bits_per_weight"])
    assert len(found["uniform"]) == len(MENU)
    for uniform in found["uniform"]:
        bound = np.interp(uniform["matrix_bytes"], nbytes, [point["objective_value"] for point in points])
        assert uniform["objective_value"] >= bound * (1 - 1e-12), "no config everywhere is below the hull"


@sqlite_only
def test_a_thinned_frontier_keeps_its_ends(client: TestClient, measured_model: Ids, model: Any) -> None:
    every = ask(client, "frontier", measured_model, scope="model")
    few = ask(client, "frontier", measured_model, scope="model", points=5)
    assert 2 < len(few["points"]) <= 5
    assert few["n_points"] == every["n_points"]
    assert (few["points"][0], few["points"][-1]) == (every["points"][0], every["points"][-1])
    assert all(point in every["points"] for point in few["points"])
    assert every["points"][0]["total_bytes"] == every["points"][0]["matrix_bytes"] + model["fixed_bytes"]
    refused(client, "frontier", measured_model, "invalid-request", points=1)


@sqlite_only
def test_a_frontier_under_constraints(client: TestClient, measured_model: Ids) -> None:
    constraints = {"groups": [{"projections": ["q", "k", "v"]}], "limits": [{"min_b_q": 3}]}
    free = ask(client, "frontier", measured_model)
    found = ask(client, "frontier", measured_model, constraints=constraints)
    assert found["points"][0]["matrix_bytes"] > free["points"][0]["matrix_bytes"]
    point = found["points"][3]
    exact = allocate(
        client, measured_model, menu=MENU, budget={"bytes": point["matrix_bytes"]}, constraints=constraints
    )
    assert exact["objective_value"] == pytest.approx(point["objective_value"], rel=1e-9)
    field = refused(client, "frontier", measured_model, "invalid-request", constraints={"max_configs": 2})
    assert field["errors"][0]["field"] == "constraints.max_configs"


def test_what_ifs_are_what_solving_again_finds(client: TestClient, measured_model: Ids) -> None:
    optimal = allocate(client, measured_model, menu=MENU, budget=BUDGET)
    pin = {"matrix": "2.down", "config": {"b_q": 2, "rank": 0}}
    found = ask(
        client, "what-if", measured_model, budget=BUDGET, pins=[pin], more_bytes=[500, -500, 0], regrets=["2.down"]
    )
    assert found["objective_value"] == pytest.approx(optimal["objective_value"])
    assert found["budget_bytes"] == optimal["budget_bytes"]
    assert found["shadow_price_per_mb"] == pytest.approx(1e6 * optimal["shadow_price"])
    pinned = allocate(
        client, measured_model, menu=MENU, budget=BUDGET,
        constraints={"pins": [{"matrices": {"layers": [2], "projections": ["down"]}, "config": pin["config"]}]},
    )  # fmt: skip
    (price,) = found["pins"]
    assert price["feasible"]
    assert price["difference"] == pytest.approx(pinned["objective_value"] - optimal["objective_value"])
    assert price["extra_bytes"] == pinned["matrix_bytes"] - optimal["matrix_bytes"]
    assert price["at_least"] <= price["difference"] <= price["at_most"]
    assert "2.down" in price["changed"]
    more, fewer, same = found["more_bytes"]
    richer = allocate(client, measured_model, menu=MENU, budget={"bytes": optimal["budget_bytes"] + 500})
    assert more["difference"] == pytest.approx(richer["objective_value"] - optimal["objective_value"])
    assert more["difference"] <= 0 <= fewer["difference"]
    assert (same["difference"], same["changed"]) == (0, [])
    (regret,) = found["regrets"]
    item = next(i for i in optimal["items"] if (i["layer_idx"], i["projection"]) == (2, "down"))
    assert regret["difference"] >= item["regret"] * (1 - 1e-9)
    assert price["difference"] >= regret["difference"] * (1 - 1e-9)
    assert 0 <= found["second_best"]["difference"] <= regret["difference"] * (1 + 1e-9)


@sqlite_only
def test_what_ifs_that_cannot_be(client: TestClient, measured_model: Ids) -> None:
    smallest = ask(client, "frontier", measured_model)["points"][0]["matrix_bytes"]
    rich = {"matrix": "0.q", "config": {"b_q": 4, "rank": 12}}
    found = ask(client, "what-if", measured_model, budget={"bytes": smallest}, pins=[rich], second_best=False)
    (price,) = found["pins"]
    assert not price["feasible"]
    assert price["smallest_bytes"] > smallest
    assert found["second_best"] is None
    for params, slug, field in (
        ({"pins": [rich | {"matrix": "0.w"}]}, "unknown-matrix", "pins.0.matrix"),
        ({"pins": [rich | {"config": {"b_q": 9}}]}, "invalid-config", "pins.0.config.b_q"),
        ({"pins": [rich | {"config": {"b_q": 4, "rank": 5}}]}, "invalid-config", "pins.0"),
        ({"regrets": ["9.q"]}, "unknown-matrix", "regrets.0"),
    ):
        problem = refused(client, "what-if", measured_model, slug, budget=BUDGET, **params)
        assert problem["errors"][0]["field"] == field
    assert refused(client, "what-if", measured_model, "invalid-request")["errors"][0]["field"] == "budget"
    small = refused(client, "what-if", measured_model, "infeasible-budget", budget={"bytes": smallest - 1})
    assert small["smallest_bytes"] == smallest
    refused(client, "frontier", measured_model | {"model_id": "none"}, "not-found", 404)
