"""Every response carries the policies, whoever makes it."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from results_db.tokens import Scope
from tests.server.security.conftest import Server

DATA = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def check(answer: Any) -> None:
    """What must be in every response."""
    headers = answer.headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    policy = headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert "cache-control" in headers
    assert len(headers.get_list("content-security-policy")) == 1
    assert not [name for name in headers if name.startswith("access-control-")], "CORS is never allowed"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/docs", 200),
        ("GET", "/login", 200),
        ("GET", "/studies/none", 404),
        ("GET", "/openapi.json", 200),
        ("GET", "/api/v1/jobs", 200),
        ("GET", "/api/v1/jobs/none", 404),
        ("GET", "/api/v1/measurements/export?format=csv", 200),
        ("GET", "/nothing", 404),
        ("PATCH", "/api/v1/jobs", 405),
        ("OPTIONS", "/api/v1/jobs", 405),
        ("POST", "/api/v1/models", 422),
        ("GET", "/livez", 200),
        ("GET", "/favicon.ico", 200),
        ("GET", "/assets/x/none.js", 404),
        ("GET", "/assets/charts.json", None),
    ],
)
def test_every_kind_of_response(at_home: Server, method: str, path: str, status: int | None) -> None:
    answer = at_home.client().request(
        method, path, headers={"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    )
    assert status is None or answer.status_code == status
    check(answer)
    is_page = answer.headers["content-type"].startswith("text/html")
    assert (answer.headers["content-security-policy"] == DATA) is not is_page


def test_refusals_of_the_middlewares(guarded: Server) -> None:
    for client, wanted in (
        (guarded.client(), 401),
        (guarded.client(Scope.READ), 403),
        (guarded.client(host="evil.example"), 403),
    ):
        answer = client.post("/api/v1/jobs/x/cancel")
        assert answer.status_code == wanted
        check(answer)
    large = guarded.client(Scope.WRITE).post("/api/v1/models", headers={"Content-Length": "99999999"}, content=b"")
    assert large.status_code == 413
    check(large)
    check(guarded.client().get("/", headers={"Accept": "text/html"}))


def test_an_error_that_nobody_expected(at_home: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("server.jobs.endpoints.paginate", explode)
    client = TestClient(at_home.app, base_url="http://localhost", raise_server_exceptions=False)
    answer = client.get("/api/v1/jobs")
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    check(answer)


def test_data_is_kept_by_no_cache(guarded: Server) -> None:
    client = guarded.client(Scope.READ)
    for path in ("/api/v1/jobs", "/", "/openapi.json"):
        assert client.get(path).headers["cache-control"] == "no-store"
