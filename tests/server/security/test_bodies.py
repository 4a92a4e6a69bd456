"""Bodies that are too large, too slow, of the wrong kind, or bombs."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from server.security.body import BodyCheck
from tests.server.security.conftest import Make, Server

PROBLEM = "urn:bitbudget:problem:"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def small(make_server: Make) -> Server:
    """A server that reads 10 kB."""
    return make_server(max_body_mb=0.01)


def test_a_body_that_says_it_is_too_large_is_refused(small: Server) -> None:
    answer = small.client().post("/api/v1/models", content=b"x", headers=JSON | {"Content-Length": "10001"})
    assert (answer.status_code, answer.json()["type"]) == (413, PROBLEM + "too-large")
    assert answer.json()["max_bytes"] == 10_000
    assert answer.headers["connection"] == "close"
    assert "BITBUDGET_MAX_BODY_MB" in answer.json()["detail"]


def test_a_body_that_hides_its_length_is_refused_at_the_limit() -> None:
    n_read = 0

    async def endless() -> Message:
        nonlocal n_read
        n_read += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    status, reached = _ask(BodyCheck(_forbidden, 10_000), endless, {"transfer-encoding": "chunked"})
    assert (status, reached) == (413, False)
    assert n_read == 11


def test_what_declares_too_much_is_not_read_at_all() -> None:
    async def never() -> Message:
        raise AssertionError("it was read")

    for length in ("10001", "9" * 400):
        assert _ask(BodyCheck(_forbidden, 10_000), never, {"content-length": length}) == (413, False)
    for length in ("-1", "0x10", "1e3", "１", ""):
        assert _ask(BodyCheck(_forbidden, 10_000), never, {"content-length": length}) == (400, False)


def test_a_body_that_never_ends_is_given_up() -> None:
    async def silent() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    assert _ask(BodyCheck(_forbidden, 10_000, within_s=0.01), silent, {"content-length": "5"}) == (408, False)


def test_a_client_that_goes_is_not_answered() -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    assert _ask(BodyCheck(_forbidden, 10_000), gone, {"content-length": "5"}) == (None, False)


def test_the_largest_body_is_read(small: Server) -> None:
    body = json.dumps({"source": "x"}).ljust(10_000).encode()
    client = small.client()
    assert client.post("/api/v1/models", content=body, headers=JSON).json()["type"] == PROBLEM + "path-not-allowed"
    assert client.post("/api/v1/models", content=body + b" ", headers=JSON).status_code == 413


@pytest.mark.parametrize(
    "sent",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain; charset=application/json",
        "application/jsonx",
        "text/json",
        "",
        None,
    ],
)
def test_what_a_form_of_another_site_could_send_is_not_read(at_home: Server, sent: str | None) -> None:
    """These are the types that browsers send elsewhere without asking."""
    headers = {} if sent is None else {"Content-Type": sent}
    answer = at_home.client().post("/api/v1/models", content=b'{"source": "x"}', headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (415, PROBLEM + "unsupported-media-type")
    assert "application/json" in answer.json()["detail"]


@pytest.mark.parametrize(
    "sent", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/merge-patch+json"]
)
def test_json_is_read(at_home: Server, sent: str) -> None:
    answer = at_home.client().post("/api/v1/models", content=b'{"source": "/x"}', headers={"Content-Type": sent})
    assert answer.json()["type"] == PROBLEM + "path-not-allowed"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 1_000_000, 400),
        (b'{"a":' * 500_000, 400),
        (b'{"source": ' + b"9" * 100_000 + b"}", 400),
        (b'{"source": 1e999999}', 422),
        (b'{"source": NaN}', 422),
        (b"\x00" * 1000, 422),
        (b'{"source": "' + b"x" * 1_000_000 + b'"}', 422),
        (b'{"source": "x"' + b',"source": "y"' * 10_000 + b"}", 403),
    ],
    ids=["lists", "objects", "digits", "exponent", "nan", "nul", "string", "repeats"],
)
def test_a_json_bomb_is_a_refusal(at_home: Server, body: bytes, status: int) -> None:
    answer = at_home.client().post("/api/v1/models", content=body, headers=JSON)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 5_000, "what was sent is not sent back"


@pytest.mark.parametrize(
    "body",
    [
        # each line is ten times the one before: a thousand million strings
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)),
        # the same by merging: each line writes the keys of the one before into itself ten times
        "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10)),
        "&a {<<: *a}",
        "name: 0x" + "f" * 9000,
        # a number to the base 60, of as many digits
        "name: " + "1:" * 40_000 + "1",
        "name: [" + "a," * 60_000 + "]",
        "!!python/object/apply:os.system ['touch /tmp/owned']",
        "&a [*a]",
        "{a: " * 20_000,
        "- " * 50_000,
    ],
    ids=[
        "laughs",
        "merges",
        "merges-itself",
        "hexadecimal",
        "sixties",
        "long",
        "python",
        "cycle",
        "depth",
        "list-depth",
    ],
)
def test_a_yaml_bomb_is_a_refusal(at_home: Server, body: str) -> None:
    answer = at_home.client().post("/api/v1/studies", content=body, headers={"Content-Type": "application/yaml"})
    slug = "too-large" if len(body) > 100_000 else "invalid-yaml"
    assert answer.json()["type"] == PROBLEM + slug
    assert answer.headers["content-type"] == "application/problem+json"


async def _forbidden(scope: Scope, receive: Receive, send: Send) -> None:
    scope["reached"] = True


def _ask(app: BodyCheck, receive: Receive, headers: dict[str, str]) -> tuple[int | None, bool]:
    """The status, and whether the application behind was called."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/api/v1/models", "headers": raw}
    anyio.run(app, scope, receive, send)
    status = next((message["status"] for message in sent if message["type"] == "http.response.start"), None)
    return status, "reached" in scope
