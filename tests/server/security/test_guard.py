"""Nobody gets past the guard: every route, every scope, every way to say who one is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio import to_thread
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from results_db.clock import utc_now
from results_db.tables import Token
from results_db.tokens import Scope, create_token, revoke_token
from server.security.guard import Guard
from server.security.scopes import needed_scope
from tests.server.security.conftest import Make, Server

PROBLEM = "urn:bitbudget:problem:"
SAFE = {"GET", "HEAD", "OPTIONS"}
#: answered to everybody
PUBLIC = {
    *("/livez", "/readyz", "/api/v1/livez", "/api/v1/readyz", "/login", "/logout", "/favicon.ico"),
    *("/assets/charts.json", "/assets/charts/{name}", "/assets/{version}/{name:path}"),
}
#: POSTs that only read
READING_POSTS = {
    "/api/v1/plans",
    "/api/v1/allocations/frontier",
    "/api/v1/allocations/what-if",
    "/api/v1/sql",
    "/api/v1/sql/queries/{name}",
}


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, included routers too."""

    def walk(routes: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for route in routes:
            if hasattr(route, "original_router"):
                yield from walk(route.original_router.routes, prefix + route.include_context.prefix)
            else:
                assert route.methods, f"{route.path}: a mount or websocket, which this test cannot walk"
                yield from ((method, prefix + route.path) for method in route.methods)

    return walk(app.routes, "")


def expected_scope(method: str, path: str) -> Scope | None:
    """The rule in other words than the server's, so that neither changes alone."""
    if path in PUBLIC:
        return None
    if method in SAFE or (method == "POST" and path in READING_POSTS):
        return Scope.READ
    if path.startswith(("/api/v1/queue/", "/api/v1/workers/", "/api/v1/tokens")) or path == "/api/v1/queue":
        return Scope.ADMIN
    return Scope.WRITE


def concrete(path: str) -> str:
    return path.replace("{name:path}", "x.css").replace("{", "").replace("}", "")


def test_every_route_asks_for_its_scope_and_for_no_less(guarded: Server) -> None:
    """All routes, with nothing, with too little and with enough."""
    routes = sorted(set(routes_of(guarded.app)))
    assert len(routes) > 60
    assert {path for _, path in routes} >= PUBLIC | READING_POSTS, "an exception that no route has"
    clients = {scope: guarded.client(scope) for scope in (None, *Scope)}
    wrong = []
    for method, path in routes:
        needed = expected_scope(method, path)
        assert needed_scope(method, concrete(path)) == needed, (method, path)
        if needed is None or path.endswith("/events"):
            continue
        if clients[None].request(method, concrete(path)).status_code != 401:
            wrong.append((method, path, "without a token"))
        for scope in Scope:
            if not scope.includes(needed) and clients[scope].request(method, concrete(path)).status_code != 403:
                wrong.append((method, path, scope))
    assert not wrong
    # one that has the scope comes through to the route, which refuses the rest in its own words
    for method, path in routes:
        needed = expected_scope(method, path)
        if needed is not None and not path.endswith(("/events", "/export")) and method != "HEAD":
            status = clients[needed].request(method, concrete(path)).status_code
            assert status not in (401, 403), (method, path)


def test_a_stream_asks_as_well(guarded: Server) -> None:
    for path in ("/api/v1/events", "/api/v1/jobs/x/events", "/api/v1/studies/x/events"):
        assert guarded.client().get(path).status_code == 401
    assert guarded.client(Scope.READ).get("/api/v1/jobs/x/events").status_code == 404


@pytest.mark.parametrize("path", ["/nothing", "/api/v1/nothing", "/openapi.json", "/docs", "//", "/api/v1/../livez"])
def test_unknown_paths_and_the_reference_tell_strangers_nothing(guarded: Server, path: str) -> None:
    answer = guarded.client().get(path)
    assert answer.status_code == 401
    assert answer.json()["type"] == PROBLEM + "token-missing"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/plans/"),
        ("POST", "/api/v1/jobs/plans"),
        ("POST", "/livez/x"),
        ("PUT", "/api/v1/sql"),
        ("DELETE", "/api/v1/plans"),
        ("BREW", "/api/v1/sql"),
        ("POST", "/api/v1/sql\n"),
        ("POST", "/api/v1/workersx"),
    ],
)
def test_what_the_table_does_not_name_needs_write(method: str, path: str) -> None:
    assert needed_scope(method, path) is Scope.WRITE


def test_a_refusal_says_what_is_missing_and_how_to_get_it(guarded: Server) -> None:
    missing = guarded.client().get("/api/v1/jobs")
    assert (missing.status_code, missing.json()["type"]) == (401, PROBLEM + "token-missing")
    assert missing.headers["www-authenticate"] == 'Bearer realm="bitbudget"'
    assert "bitbudget tokens create" in missing.json()["detail"]
    short = guarded.client(Scope.READ).post("/api/v1/models", json={"source": "x"})
    assert (short.status_code, short.json()["type"]) == (403, PROBLEM + "scope-missing")
    assert 'scope="write"' in short.headers["www-authenticate"]
    assert short.json()["needed"] == "write"


@pytest.mark.parametrize(
    "sent",
    [
        "Bearer",
        "Bearer ",
        "Bearer bb_",
        "Bearer " + "x" * 46,
        "Bearer bb_" + "A" * 43,
        "Bearer bb_" + "A" * 44,
        "Bearer bb_" + "A" * 100_000,
        "Bearer bb_" + "é" * 43,
        "Bearer ' OR 1=1 --",
        "Basic YWRtaW46YWRtaW4=",
        "bb_" + "A" * 43,
    ],
)
@pytest.mark.parametrize("where", ["guarded", "at_home"])
def test_a_wrong_token_is_refused_even_on_loopback(where: str, sent: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(where)
    answer = server.client().get("/api/v1/jobs", headers={"Authorization": sent.encode()})
    assert (answer.status_code, answer.json()["type"]) == (401, PROBLEM + "token-invalid")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert len(sent) < 15 or sent not in answer.text


def test_two_tokens_are_none(guarded: Server) -> None:
    header = ("Authorization", f"Bearer {guarded.tokens[Scope.READ]}")
    client = guarded.client()
    assert client.get("/api/v1/jobs", headers=[header]).status_code == 200
    assert client.get("/api/v1/jobs", headers=[header, header]).status_code == 401


@pytest.mark.parametrize(
    "where", ["/api/v1/jobs?token={}", "/api/v1/jobs?access_token={}", "/api/v1/jobs?authorization=Bearer%20{}"]
)
def test_a_token_in_the_address_counts_for_nothing(guarded: Server, where: str) -> None:
    """Addresses are logged and kept in histories."""
    assert guarded.client().get(where.format(guarded.tokens[Scope.ADMIN])).status_code == 401


def test_the_scheme_is_read_in_any_case(guarded: Server) -> None:
    answer = guarded.client().get("/api/v1/jobs", headers={"Authorization": f"bEARER  {guarded.tokens[Scope.READ]}"})
    assert answer.status_code == 200


def test_revoked_and_expired_tokens_are_told_nothing_more_than_unknown_ones(guarded: Server) -> None:
    with guarded.database.write() as session:
        revoked = create_token(session, "revoked", Scope.ADMIN)
        expired = create_token(session, "expired", Scope.ADMIN)
    client = guarded.client()

    def ask(secret: str) -> Any:
        return client.get("/api/v1/jobs", headers={"Authorization": f"Bearer {secret}"})

    assert (ask(revoked.secret).status_code, ask(expired.secret).status_code) == (200, 200)
    with guarded.database.write() as session:
        revoke_token(session, "revoked")
        session.get_one(Token, expired.row.id).expires_at = utc_now()
    answers = [ask(secret).json() for secret in (revoked.secret, expired.secret, "bb_" + "A" * 43)]
    for answer in answers:
        answer.pop("trace_id", None)
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["status"] == 401


@pytest.mark.parametrize("database_backend", ["sqlite", "postgresql"], indirect=True)
def test_tokens_work_on_both_databases(app: FastAPI, settings: Any) -> None:
    with TestClient(app, base_url="http://localhost", client=("10.0.0.9", 1)) as client:
        with app.state.database.write() as session:
            secret = create_token(session, "far", Scope.READ).secret
        assert client.get("/api/v1/jobs").status_code == 401
        assert client.get("/api/v1/jobs", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        with app.state.database.read() as session:
            used = session.query(Token).one().last_used_at
        assert used is not None, "the use of a token is noted"


def test_at_home_nobody_is_asked(at_home: Server) -> None:
    client = at_home.client()
    assert client.get("/api/v1/jobs").status_code == 200
    assert client.get("/").status_code == 200
    assert client.post("/api/v1/jobs/x/cancel").status_code == 404
    # a token that is sent counts, and a reading one only reads
    reading = at_home.client(Scope.READ)
    assert reading.get("/api/v1/jobs").status_code == 200
    assert reading.post("/api/v1/jobs/x/cancel").status_code == 403


@pytest.mark.parametrize(
    "peer", ["10.0.0.1", "192.168.1.5", "::ffff:10.0.0.1", "2001:db8::1", "fe80::1", "testclient", ""]
)
def test_another_machine_is_asked_whatever_the_server_believes_of_itself(at_home: Server, peer: str) -> None:
    """Someone may have started it with an address of his own, or behind a port that is forwarded."""
    assert at_home.client(peer=peer).get("/api/v1/jobs").status_code == 401
    assert at_home.client(Scope.READ, peer=peer).get("/api/v1/jobs").status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        *("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port"),
        *("X-Forwarded-Server", "X-Forwarded-Anything", "X-Real-IP", "CF-Connecting-IP", "X-Envoy-External-Address"),
    ],
)
@pytest.mark.parametrize("value", ["127.0.0.1", "for=127.0.0.1;host=localhost;proto=https", ""])
def test_a_proxys_headers_never_make_a_request_local(at_home: Server, header: str, value: str) -> None:
    assert at_home.client(peer="10.0.0.1").get("/api/v1/jobs", headers={header: value}).status_code == 401
    # and what comes through a proxy on this machine is not this machine's own
    assert at_home.client().get("/api/v1/jobs", headers={header: value}).status_code == 401


@pytest.mark.parametrize("listens", ["0.0.0.0", "::", "10.1.2.3"])
def test_off_loopback_everybody_needs_a_token(make_server: Make, listens: str) -> None:
    server = make_server(host=listens)
    assert server.client().get("/api/v1/jobs").status_code == 401
    assert server.client(Scope.READ).get("/api/v1/jobs").status_code == 200
    assert server.client().get("/livez").status_code == 200
    # an address to listen on is none to ask by: pages of other sites can reach it
    if listens in ("0.0.0.0", "::"):
        host = "[::]" if ":" in listens else listens
        assert server.client(Scope.READ, host=host).get("/api/v1/jobs").status_code == 403


def test_a_configured_name_is_no_loopback_name(make_server: Make) -> None:
    server = make_server(allowed_hosts=("box.lan",))
    assert server.client(host="box.lan").get("/api/v1/jobs").status_code == 401
    assert server.client(host="localhost").get("/api/v1/jobs").status_code == 200


def test_a_database_that_is_away_lets_nobody_in(make_server: Make) -> None:
    server = make_server(require_token=True)

    def refuse(*_: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("gone"))

    event.listen(server.database.engine, "before_cursor_execute", refuse)
    answer = server.client(Scope.ADMIN).get("/openapi.json")
    assert (answer.status_code, answer.json()["type"]) == (503, PROBLEM + "database-unavailable")
    assert server.client(Scope.ADMIN).get("/livez").status_code == 200, "it lives without a database"


class _Streaming:
    """Stands for the application: an event stream that goes on until its client has gone."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            await send({"type": "http.response.body", "body": b": ping", "more_body": True})


def test_a_stream_ends_with_its_token(guarded: Server) -> None:
    with guarded.database.write() as session:
        secret = create_token(session, "streaming", Scope.READ).secret
    sent: list[Any] = []
    began = anyio.Event()

    async def receive() -> Any:
        await anyio.sleep_forever()

    async def send(message: Any) -> None:
        sent.append(message)
        began.set()

    async def stream() -> None:
        headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {secret}".encode())]
        scope = {"type": "http", "method": "GET", "path": "/api/v1/events", "headers": headers, "query_string": b""}
        guard = Guard(_Streaming(), guarded.database, guarded.settings, ask_again_s=0.01)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(guard, scope, receive, send)
                await began.wait()
                await to_thread.run_sync(_revoke, guarded, "streaming")

    anyio.run(stream)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[-1]["more_body"] is False, "the response ends in good order"


def test_a_stream_of_this_machine_does_not_end_with_a_cookie_that_ended_long_ago(at_home: Server) -> None:
    listens: list[Any] = []

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        listens.append(receive)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def ask(name: str, value: str) -> None:
        headers = [(b"host", b"localhost"), (name.encode(), value.encode())]
        scope = {"type": "http", "method": "GET", "path": "/api/v1/events", "headers": headers, "client": ("::1", 1)}
        await Guard(stream, at_home.database, at_home.settings)(scope, receive, receive)

    anyio.run(ask, "cookie", f"bitbudget_session={'A' * 43}")
    anyio.run(ask, "authorization", f"Bearer {at_home.tokens[Scope.READ]}")
    assert [listen is receive for listen in listens] == [True, False], "the token's stream is asked for it again"


def _revoke(server: Server, name: str) -> None:
    with server.database.write() as session:
        revoke_token(session, name)


def test_websockets_are_closed(guarded: Server) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), guarded.client(Scope.ADMIN).websocket_connect("/api/v1/events"):
        pass
