"""What a study makes of its budgets: by default the bytes of a uniform config, and no verdict where nothing binds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.studies.plan import plan_study, resolved_budgets
from server.studies.schemas import StudyConfig

GRID = {"codebook": "e8", "b_q": [2, 3, 4], "rank": [0, 8, 16]}
PILOT = {"uniform": {"b_q": 3, "rank": 0}, "high": {"b_q": 4, "rank": 8}, "low": {"b_q": 2, "rank": 0}}


def study(**fields: Any) -> StudyConfig:
    return StudyConfig.model_validate({"name": "x", "model": {"source": "m"}, "grid": GRID} | fields)


@pytest.mark.parametrize(("fields", "config"), [({}, (3, 8)), ({"phase0": PILOT}, (3, 0))])
def test_a_study_without_budgets_takes_the_bytes_of_a_uniform_config(
    fields: dict[str, Any], config: tuple[int, int]
) -> None:
    (budget,) = resolved_budgets(study(**fields))
    assert budget.uniform is not None
    # every field is there, so that the budget does not change with a default
    assert (budget.uniform["b_q"], budget.uniform["rank"], budget.uniform["codebook"]) == (*config, "e8")
    assert budget.bytes is budget.gb is budget.bits_per_weight is budget.fraction is None
    optimal = next(s for s in plan_study(study(**fields), "mod_1", fetch=False) if s.name == "allocate:optimal")
    assert optimal.params["budget"]["uniform"] == budget.uniform


def test_given_budgets_stay_as_they_are() -> None:
    given = [{"gb": 6.0}, {"bytes": 5}, {"bits_per_weight": 2.5}, {"fraction": 0.25}, {"uniform": {"b_q": 2}}]
    found = [b.model_dump(exclude_none=True) for b in resolved_budgets(study(budgets=given))]
    assert found[:4] == given[:4]
    assert found[4]["uniform"]["codebook"] == "e8"


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_a_slack_budget_decides_none_of_its_gates(
    client: TestClient, study_config: dict[str, Any], run_to_end: Callable[..., None]
) -> None:
    """7B with at most 4 bits at 8 GB, in small: the largest config everywhere takes less than the budget."""
    study_config["budgets"] = [{"gb": 1}]
    study_config["phases"] = [1, 3, 4]
    answer = client.post("/api/v1/studies", json={"config": study_config})
    assert answer.status_code == 202, answer.text
    run_to_end()
    found = client.get(f"/api/v1/studies/{answer.json()['id']}").json()
    assert found["state"] == "succeeded", found["reason"]
    gates = {(gate["phase"], gate["name"]): gate for gate in found["gates"]}
    for key in ((3, "optimal_differs"), (3, "bytes_match"), (4, "optimal_beats_uniform")):
        assert gates[key]["verdict"] == "NOT DECIDABLE", key
        assert "slack" in gates[key]["explanation"], key


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_a_budget_is_slack_as_it_was_given_and_not_as_a_rival_leaves_it(
    client: TestClient, measured_model: dict[str, Any]
) -> None:
    """The best uniform config need not be the largest one: an optimum of its bytes binds, the budget still does not."""

    def allocate(**fields: Any) -> dict[str, Any]:
        ask = {"model_id": measured_model["model_id"], "name": "x"} | fields
        answer = client.post("/api/v1/allocations", json=ask)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    rival = allocate(kind="uniform", uniform={"b_q": 3, "rank": 4})
    largest = allocate(kind="best_uniform", budget={"gb": 1})
    cap = {"kind": "optimal", "budget_allocation_id": rival["id"]}
    found = allocate(budget={"gb": 1}, **cap)
    assert found["matrix_bytes"] <= rival["matrix_bytes"] < largest["matrix_bytes"]
    assert found["details"]["slack"] is True
    # where the budget itself binds, or none is given beside the rival, nothing is slack
    assert allocate(budget={"bytes": largest["matrix_bytes"] - 1}, **cap)["details"]["slack"] is False
    assert allocate(budget={"bytes": largest["matrix_bytes"]}, **cap)["details"]["slack"] is True
    assert allocate(**cap)["details"]["slack"] is False
