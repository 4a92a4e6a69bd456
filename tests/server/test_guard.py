"""What a study's sentence says of the select split is of the optimum that was judged there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_a_second_optimum_that_loses_is_named_with_its_numbers(
    client: TestClient,
    study_config: dict[str, Any],
    run_to_end: Callable[..., None],
    make_worker: Callable[..., Any],
) -> None:
    """The second optimum is the better of the two on the select split, and still worse than uniform."""
    worse = {"optimal": 9.0, "reanchored": 7.0}
    study_config["phases"] = [1, 3, 4]
    answer = client.post("/api/v1/studies", json={"config": study_config})
    assert answer.status_code == 202, answer.text
    worker = make_worker(calibrated=False, validated_excess=lambda name, excess: worse.get(name, 1.0) * excess)
    run_to_end(worker)
    study = client.get(f"/api/v1/studies/{answer.json()['id']}").json()
    assert study["state"] == "succeeded", study["reason"]
    headline = study["headline"]
    assert headline["optimal_vs_uniform"]["recommended"] == "best uniform"
    assert headline["optimal_vs_uniform"]["guard"]["challenger"] == "optimal, re-anchored"
    assert "on the select split optimal, re-anchored did not beat best uniform" in headline["sentence"]
    jobs = {job["step"]: job for job in study["jobs"]}
    chosen = client.get(f"/api/v1/allocations/{jobs['allocate:chosen']['result']['allocation_id']}").json()
    choice = chosen["details"]["choice"]
    assert (choice["winner"], choice["challenger"]) == ("uniform", "reanchored")
    assert headline["optimal_vs_uniform"]["guard"]["gain_percent"]["value"] == choice["gain_percent"]["value"]
