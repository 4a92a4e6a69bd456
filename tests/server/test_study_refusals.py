"""What a study's config may not say, and bodies that are no config."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

pytestmark = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)

Config = dict[str, Any]


@pytest.fixture
def client(standing: TestClient) -> TestClient:
    return standing


@pytest.fixture
def study_config(study_config: Config, model: dict[str, Any]) -> Config:
    return study_config | {"model": {"source": model["local_path"]}}


@pytest.mark.parametrize(
    ("change", "slug", "field"),
    [
        ({"grid": {"b_q": [2], "rank": [-1]}}, "invalid-request", "grid"),
        ({"grid": {"b_q": [2, 9], "rank": [0]}}, "invalid-request", "grid"),
        ({"grid": {"b_q": [2], "rank": [0], "codebook": "none"}}, "invalid-request", "grid"),
        ({"grid": {"b_q": ["two"], "rank": [0]}}, "invalid-request", "grid.b_q.0"),
        ({"speed": 3}, "invalid-request", "speed"),
        ({"phases": [4]}, "invalid-request", ""),
        ({"phases": [7]}, "invalid-request", "phases.0"),
        ({"gates": {"beauty": 1}}, "invalid-request", "gates"),
        ({"budgets": [{"gb": 1, "bytes": 1}]}, "invalid-request", "budgets"),
        ({"budgets": [{"bits_per_weight": 0.5}]}, "infeasible-budget", "budgets.0"),
        ({"baselines": {"rtn": [1]}}, "invalid-request", "baselines.rtn"),
        ({"baselines": {"gptq": [9]}}, "invalid-request", "baselines.gptq"),
        ({"text": {"kind": "file"}}, "invalid-request", "text.path"),
        ({"sensitivity": {"anchors": [{"b_q": 2, "rank": "x"}]}}, "invalid-request", ""),
        ({"model": {"source": "org/name"}}, "model-not-found", "model.source"),
        ({"name": ""}, "invalid-request", "name"),
    ],
)
def test_bad_configs(client: TestClient, study_config: Config, change: Config, slug: str, field: str) -> None:
    before = client.get("/api/v1/jobs").json()["items"]
    answer = client.post("/api/v1/studies", json={"config": study_config | change})
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["type"] == f"urn:bitbudget:problem:{slug}"
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["errors"][0]["field"] == field
    assert client.get("/api/v1/jobs").json()["items"] == before


@pytest.mark.parametrize("body", [b"a: [", b"- a", b"", b"\xff"])
def test_bodies_that_are_no_config(client: TestClient, body: bytes) -> None:
    for media_type in ("application/yaml", "application/json"):
        answer = client.post("/api/v1/studies", content=body, headers={"Content-Type": media_type})
        assert answer.status_code == 422, answer.text


@pytest.mark.parametrize(
    "text",
    [
        "name: 2020-99-99",
        "a: !!bool maybe",
        "a: !!timestamp soon",
        "a: !!int x",
        pytest.param("[" * 2_000, id="nested"),
    ],
)
def test_yaml_that_breaks_its_reader_is_a_problem(client: TestClient, text: str) -> None:
    answer = client.post("/api/v1/studies", content=text, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == "urn:bitbudget:problem:invalid-yaml"


def test_another_content_type_is_named(client: TestClient) -> None:
    answer = client.post("/api/v1/studies", content="name: x", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert "application/yaml" in answer.json()["detail"]
