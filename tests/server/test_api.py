"""What every endpoint shares: problems, hosts, health, the OpenAPI document."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from results_db.settings import Settings
from server.app import create_app

LISTS = (
    *("models", "calibrations", "sensitivities", "sweeps", "measurements", "fits", "allocations", "compressions"),
    *("evaluations", "validations", "studies", "gates", "jobs", "workers", "probes"),
    *("sensitivities/anchors", "sensitivities/layers"),
)
SINGLES = (
    *("models", "calibrations", "sweeps", "fits", "allocations", "compressions", "evaluations", "studies", "jobs"),
    *("probes", "validations"),
)

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def client(standing: TestClient) -> TestClient:
    """What is refused leaves nothing behind."""
    return standing


def test_empty_lists_and_unknown_ids(fresh_client: TestClient) -> None:
    for noun in LISTS:
        assert fresh_client.get(f"/api/v1/{noun}").json() == {"items": [], "next": None}, noun
    for noun in SINGLES:
        answer = fresh_client.get(f"/api/v1/{noun}/nothing")
        assert answer.status_code == 404, noun
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:bitbudget:problem:not-found"
    assert fresh_client.get("/api/v1/nothing").json()["status"] == 404
    assert fresh_client.delete("/api/v1/jobs").json()["type"] == "urn:bitbudget:problem:method-not-allowed"


@sqlite_only
@pytest.mark.parametrize("query", ["cursor=nonsense", "cursor=WzFd", "limit=0", "limit=9999", "order=up", "state=busy"])
def test_bad_queries(client: TestClient, query: str) -> None:
    answer = client.get(f"/api/v1/jobs?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == query.split("=")[0]


@sqlite_only
def test_an_unexpected_error_tells_its_trace_and_nothing_else(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        monkeypatch.setattr("server.jobs.endpoints.paginate", explode)
        answer = client.get("/api/v1/jobs")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert answer.json()["trace_id"] in answer.json()["detail"]


@sqlite_only
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("127.9.9.9", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.0.1", 403),
        ("0.0.0.0", 403),
        ("a@localhost", 400),
        ("localhost:port", 400),
        ("", 400),
    ],
)
def test_hosts(client: TestClient, host: str, status: int) -> None:
    assert client.get("/livez", headers={"Host": host}).status_code == status


@sqlite_only
def test_configured_hosts(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"allowed_hosts": ("box.lan",)}), run_loop=False, page=False)
    with TestClient(app, base_url="http://box.lan") as client:
        assert client.get("/livez").status_code == 200


@sqlite_only
@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Origin": "http://localhost"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
    ],
)
def test_other_sites_may_not_write(client: TestClient, headers: dict[str, str], allowed: bool) -> None:
    answer = client.post("/api/v1/jobs/nothing/cancel", headers=headers)
    assert answer.status_code == (404 if allowed else 403)
    assert client.get("/api/v1/jobs", headers=headers).status_code == 200


def test_health(client: TestClient) -> None:
    for prefix in ("", "/api/v1"):
        assert client.get(f"{prefix}/livez").json() == {"status": "ok"}
        answer = client.get(f"{prefix}/readyz")
        assert answer.status_code == 503
        checks = answer.json()["checks"]
        assert checks["database"]["ok"]
        assert not checks["redis"]["ok"]
        assert "wait in the database" in checks["redis"]["detail"]


@sqlite_only
def test_openapi(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    paths = document["paths"]
    assert {f"/api/v1/{noun}" for noun in LISTS} <= set(paths)
    for path in paths:
        assert path.startswith("/api/v1/"), f"{path}: the page is not part of the API"
    assert {"Model", "Job", "Study", "Allocation"} <= set(document["components"]["schemas"])


@sqlite_only
def test_the_page_is_served_beside_the_api(settings: Settings) -> None:
    app = create_app(settings, run_loop=False)
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.get("/")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    "path",
    [
        "jobs?cursor=WzE4NDQ2NzQ0MDczNzA5NTUxNjE2XQ",
        "measurements?cursor=WzE4NDQ2NzQ0MDczNzA5NTUxNjE2XQ",
        "measurements?cursor=W3RydWVd",
        "measurements?layer_idx=18446744073709551616",
        "measurements/export?rank=4294967296",
        "sensitivities?layer_idx=4294967296",
        "events?after=18446744073709551616",
    ],
)
def test_numbers_beyond_a_column_are_refused(client: TestClient, path: str) -> None:
    answer = client.get(f"/api/v1/{path}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] in path


@pytest.mark.parametrize("last", ["9" * 11, "9" * 5000, "4294967296", "-1", "x"])
def test_a_last_event_id_that_is_none(client: TestClient, last: str) -> None:
    answer = client.get("/api/v1/events", headers={"Last-Event-ID": last})
    assert answer.status_code == 422


@pytest.mark.parametrize("body", [b'{"source": "\\ud800"}', b'{"source": "x", "\\ud800": 1}'])
def test_a_lone_surrogate_is_a_problem_not_a_crash(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/v1/models", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_nul_is_refused_or_found_nowhere(client: TestClient, database_backend: str) -> None:
    # PostgreSQL's texts hold none; SQLite looks for it
    assert client.get("/api/v1/jobs/%00").status_code == {"sqlite": 404, "postgresql": 422}[database_backend]


@sqlite_only
@pytest.mark.parametrize(
    ("body", "media_type", "status", "says"),
    [
        (b"", "application/json", 422, "must be a JSON object"),
        (b"[1]", "application/json", 422, "must be a JSON object"),
        (b'{"source": "x"}', "text/plain", 415, "send application/json"),
        (b'{"source":', "application/json", 422, "not valid JSON"),
        (b'{"source": "\xff"}', "application/json", 400, "cannot be read as JSON"),
    ],
)
def test_a_body_that_is_no_json_object_says_so(
    client: TestClient, body: bytes, media_type: str, status: int, says: str
) -> None:
    answer = client.post("/api/v1/models", content=body, headers={"Content-Type": media_type})
    assert answer.status_code == status
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("resource", ["sweeps", "calibrations", "compressions", "sensitivities", "fits"])
def test_lone_surrogates_are_refused(client: TestClient, resource: str) -> None:
    body = rb'{"model_id": "\ud800", "configs": [{"b_q": 2}], "anchors": [{"b_q": 2}]}'
    if resource in ("calibrations", "compressions", "fits"):
        body = rb'{"model_id": "\ud800"}'
    answer = client.post(f"/api/v1/{resource}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
