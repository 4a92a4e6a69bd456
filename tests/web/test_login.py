"""Logging in with a token, out again, and every way to misuse either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response
from sqlalchemy import select

from results_db import Database
from results_db.clock import utc_now
from results_db.settings import Settings
from results_db.tables import PageSession
from results_db.tokens import Scope, create_token, hash_secret, revoke_token
from server.app import create_app
from server.security.attempts import MOST_FAILURES, WITHIN_S, Attempts
from server.security.login import safe_next

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
OWN = {"Sec-Fetch-Site": "same-origin"}
COOKIE = "bitbudget_session"

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def guarded(settings: Settings) -> FastAPI:
    """The page behind tokens."""
    return create_app(settings.model_copy(update={"require_token": True}), run_loop=False)


@pytest.fixture
def browser(guarded: FastAPI) -> Iterator[TestClient]:
    """A browser that opens pages, and keeps cookies."""
    with TestClient(
        guarded, base_url="http://localhost", headers={"Accept": "text/html"}, follow_redirects=False
    ) as client:
        yield client


@pytest.fixture
def token(guarded: FastAPI) -> Callable[..., str]:
    def make(scope: Scope = Scope.READ, **options: Any) -> str:
        with guarded.state.database.write() as session:
            return create_token(session, scope.value, scope, **options).secret

    return make


def log_in(browser: TestClient, secret: str, **fields: str) -> Response:
    return browser.post("/login", data={"token": secret} | fields, headers=OWN)


def test_a_token_is_traded_for_a_cookie_and_given_back(
    browser: TestClient, token: Callable[..., str], guarded: FastAPI
) -> None:
    secret = token()
    asked = browser.get("/docs?a=b")
    assert asked.status_code == 303
    assert asked.headers["location"] == "/login?next=%2Fdocs%3Fa%3Db"
    page = browser.get(asked.headers["location"])
    assert 'name="next" value="/docs?a=b"' in page.text
    assert 'type="password"' in page.text
    done = log_in(browser, secret, next="/docs?a=b")
    assert (done.status_code, done.headers["location"]) == (303, "/docs?a=b")
    assert browser.get("/docs?a=b").status_code == 200
    assert browser.get("/api/v1/jobs").status_code == 200
    assert "read" in browser.get("/login").text
    # the cookie is stored as a hash, and never holds the token
    value = browser.cookies[COOKIE]
    assert value not in secret
    database: Database = guarded.state.database
    with database.read() as session:
        row = session.scalars(select(PageSession)).one()
    assert row.secret_hash == hash_secret(value)
    assert timedelta(hours=11) < row.expires_at - utc_now() <= timedelta(hours=12)
    # out again: the cookie is worth nothing, even to one who kept it
    out = browser.post("/logout", headers=OWN)
    assert (out.status_code, out.headers["location"]) == (303, "/login")
    assert COOKIE not in browser.cookies
    assert browser.get("/api/v1/jobs", headers={"Cookie": f"{COOKIE}={value}"}).status_code == 401


@sqlite_only
def test_the_cookies_attributes(browser: TestClient, token: Callable[..., str]) -> None:
    secret = token()
    plain = log_in(browser, secret).headers["set-cookie"]
    assert plain.startswith(f"{COOKIE}=")
    assert {part.strip().lower() for part in plain.split(";")[1:]} == {"httponly", "path=/", "samesite=strict"}
    # where the browser's line is encrypted: Secure, and a name that no other origin can set
    secure = browser.post("/login", data={"token": secret}, headers=OWN | {"X-Forwarded-Proto": "https"})
    assert secure.headers["set-cookie"].startswith(f"__Host-{COOKIE}=")
    parts = {part.strip().lower() for part in secure.headers["set-cookie"].split(";")[1:]}
    assert parts == {"httponly", "path=/", "samesite=strict", "secure"}
    # there the plain name, which a neighbour could have planted, is not read
    value = plain.partition("=")[2].partition(";")[0]
    planted = {"Cookie": f"{COOKIE}={value}", "X-Forwarded-Proto": "https"}
    assert browser.get("/api/v1/jobs", headers=planted).status_code == 401


def test_revoking_the_token_logs_out(browser: TestClient, token: Callable[..., str], guarded: FastAPI) -> None:
    log_in(browser, token())
    assert browser.get("/").status_code == 200
    with guarded.state.database.write() as session:
        revoke_token(session, "read")
    assert browser.get("/").status_code == 303
    assert browser.get("/api/v1/jobs", headers={"Accept": "*/*"}).status_code == 401


@sqlite_only
def test_an_expired_session_is_asked_to_log_in_again(
    browser: TestClient, token: Callable[..., str], guarded: FastAPI
) -> None:
    log_in(browser, token())
    with guarded.state.database.write() as session:
        session.scalars(select(PageSession)).one().expires_at = utc_now()
    assert browser.get("/").headers["location"].startswith("/login")


@sqlite_only
def test_a_session_reaches_as_far_as_its_token(browser: TestClient, token: Callable[..., str]) -> None:
    log_in(browser, token(Scope.READ))
    refused = browser.post("/api/v1/jobs/x/cancel", headers=OWN)
    assert (refused.status_code, refused.json()["needed"]) == (403, "write")
    log_in(browser, token(Scope.WRITE))
    assert browser.post("/api/v1/jobs/x/cancel", headers=OWN).status_code == 404


@sqlite_only
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 404),
        ({"Origin": "http://localhost"}, 404),
        ({}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_a_cookie_changes_things_for_our_own_page_alone(
    browser: TestClient, token: Callable[..., str], headers: dict[str, str], status: int
) -> None:
    log_in(browser, token(Scope.WRITE))
    assert browser.post("/api/v1/jobs/x/cancel", headers=headers).status_code == status


@sqlite_only
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_cookie_that_another_page_made_the_browser_send_reads_nothing(
    browser: TestClient, token: Callable[..., str], site: str
) -> None:
    """SameSite=Strict keeps it from being sent at all; a browser that does not know that is refused here."""
    log_in(browser, token())
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors", "Accept": "*/*"}
    assert browser.get("/api/v1/jobs", headers=headers).status_code == 401


@sqlite_only
@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}])
@pytest.mark.parametrize("path", ["/login", "/logout"])
def test_other_sites_log_nobody_in_or_out(
    browser: TestClient, token: Callable[..., str], path: str, headers: dict[str, str]
) -> None:
    answer = browser.post(path, data={"token": token()}, headers=headers)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@sqlite_only
def test_a_wrong_token_is_told_one_thing_whatever_is_wrong(
    browser: TestClient, token: Callable[..., str], guarded: FastAPI
) -> None:
    revoked = token(Scope.READ)
    with guarded.state.database.write() as session:
        revoke_token(session, "read")
    pages = []
    for wrong in (revoked, "bb_" + "A" * 43, "", "x", "bb_" + "é" * 43, "<script>alert(1)</script>", "x" * 201):
        answer = log_in(browser, wrong)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert "alert(1)" not in answer.text
        pages.append(answer.text)
    assert len(set(pages)) == 1


@sqlite_only
def test_many_wrong_tokens_are_slowed_down(browser: TestClient, token: Callable[..., str]) -> None:
    secret = token()
    for _ in range(MOST_FAILURES):
        assert log_in(browser, "bb_" + "A" * 43).status_code == 401
    slowed = log_in(browser, secret)
    assert slowed.status_code == 429
    assert 0 < int(slowed.headers["retry-after"]) <= WITHIN_S
    assert "set-cookie" not in slowed.headers
    # requests that carry the token itself are not: it is not guessed
    assert browser.get("/api/v1/jobs", headers={"Authorization": f"Bearer {secret}"}).status_code == 200


def test_failures_are_forgotten_after_a_minute_and_counted_by_caller() -> None:
    now = 0.0
    attempts = Attempts(lambda: now)
    for _ in range(MOST_FAILURES):
        assert attempts.wait_s("a") == 0
        attempts.failed("a")
    assert attempts.wait_s("a") == WITHIN_S
    assert attempts.wait_s("b") == 0
    now = WITHIN_S
    assert attempts.wait_s("a") == 0
    for caller in range(5000):
        attempts.failed(str(caller))
    assert len(attempts._failures) <= 1024, "memory is bounded whoever calls"


@pytest.mark.parametrize("path", ["/", "/docs", "/studies/std_1?a=b&c=%20d", "/jobs/x#y"])
def test_a_way_on_this_site_is_kept(path: str) -> None:
    assert safe_next(path) == path


@pytest.mark.parametrize(
    "path",
    [
        *("", "docs", "http://evil.example", "https:evil.example", "javascript:alert(1)", "data:text/html,x"),
        *("//evil.example", "///evil.example", "/\\evil.example", "\\\\evil.example", "/\t/evil.example"),
        *("/\n/evil.example", "\t//evil.example", " //evil.example", "/\r\nSet-Cookie: a=b", "/\x00", "/a\\b"),
        *("/\u2028/evil.example", "/．evil.example", "/login", "/login?next=/login", "/logout"),
    ],
)
def test_no_way_leads_elsewhere(path: str) -> None:
    assert safe_next(path) == "/"


@sqlite_only
@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example", "https://evil.example"])
def test_the_login_sends_nobody_elsewhere(browser: TestClient, token: Callable[..., str], path: str) -> None:
    assert "evil" not in browser.get("/login", params={"next": path}).text
    assert log_in(browser, token(), next=path).headers["location"] == "/"


@sqlite_only
def test_only_pages_lead_to_the_login(browser: TestClient) -> None:
    for path, headers in (
        ("/api/v1/jobs", {}),
        ("/studies/x/live", {"Sec-Fetch-Mode": "cors"}),
        ("/", {"Accept": "application/json"}),
    ):
        assert browser.get(path, headers=headers).status_code == 401


@sqlite_only
def test_a_path_that_reads_as_another_host_is_never_come_back_to(
    browser: TestClient, token: Callable[..., str]
) -> None:
    asked = browser.get("http://localhost//evil.example/x")
    assert (asked.status_code, asked.headers["location"]) == (303, "/login?next=%2F%2Fevil.example%2Fx")
    assert "evil" not in browser.get(asked.headers["location"]).text
    assert log_in(browser, token(), next="//evil.example/x").headers["location"] == "/"


@sqlite_only
def test_bodies_that_are_no_login(browser: TestClient) -> None:
    assert browser.post("/login", json={"token": "x"}, headers=OWN).status_code == 415
    assert browser.post("/login", content=b"token=" + b"x" * 9000, headers=OWN | FORM).status_code == 413
    many = "&".join(f"a{n}=1" for n in range(1000))
    assert browser.post("/login", content=many, headers=OWN | FORM).status_code == 401
    assert browser.post("/login", content=b"\xff\x00%zz=%ff", headers=OWN | FORM).status_code == 401


@sqlite_only
def test_at_home_there_is_nothing_to_log_in_to(client: TestClient) -> None:
    page = client.get("/login")
    assert page.status_code == 200
    assert "without a token" in page.text
