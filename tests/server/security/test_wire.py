"""Raw bytes to a real socket: what an HTTP library would never send."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from tests.server.security.conftest import Make
from tests.serving import serving

Ask = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def ask(make_server: Make) -> Iterator[Ask]:
    """Send bytes, and read until the server closes the connection."""
    app = make_server(max_body_mb=0.01).app
    options = {"lifespan": "off", "log_config": None, "server_header": False, "proxy_headers": False}
    with serving(app, timeout_keep_alive=1, **options) as address:
        at = urlsplit(address)

        def send(request: bytes) -> bytes:
            with socket.create_connection((at.hostname, at.port), timeout=60) as connection:
                received = b""
                try:
                    connection.sendall(request)
                    while chunk := connection.recv(65_536):
                        received += chunk
                except ConnectionError:
                    pass  # it was closed while we were still sending: what came before counts
            return received

        yield send


def _get(*headers: str, path: str = "/livez", version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/{version}", *headers, "", ""]).encode("latin-1")


def _status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def test_an_ordinary_request_tells_no_versions(ask: Ask) -> None:
    answer = ask(_get("Host: localhost", "Connection: close"))
    assert _status(answer) == 200
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"\r\nserver:" not in head
    assert b"uvicorn" not in head
    assert b"\r\nx-content-type-options: nosniff" in head


@pytest.mark.parametrize(
    "request_",
    [
        _get("Host: localhost", path="/" + "x" * 200_000),
        _get("Host: localhost", "X-Long: " + "x" * 200_000),
        _get("Host: localhost", *(f"X-{n}: {'y' * 1000}" for n in range(200))),
        _get("Host: localhost", "Host: evil.example"),
        _get("X-No: host"),
        _get("Host: localhost", "Content-Length: 5", "Content-Length: 6"),
        _get("Host: localhost", "Content-Length: -5"),
        _get("Host: localhost", "Transfer-Encoding: gzip, chunked"),
        _get("Host: localhost", "Bad Header: x"),
        _get("Host: localhost", "X: a\x00b"),
        b"GET  /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=[
        "url",
        "header",
        "headers",
        "hosts",
        "no host",
        "lengths",
        "negative",
        "coding",
        "name",
        "nul",
        "line",
        "tls",
        "h2",
    ],
)
def test_what_is_no_request_ends_at_the_socket(ask: Ask, request_: bytes) -> None:
    status = _status(ask(request_))
    # 0: the answer is lost where the server closes while we are still sending
    assert status == 400 or (status == 0 and len(request_) > 100_000)


def test_an_old_request_without_a_host_is_refused(ask: Ask) -> None:
    answer = ask(_get(version="1.0"))
    assert _status(answer) == 400
    assert b"host-not-allowed" in answer


@pytest.mark.parametrize("path", ["/livez", "/api/v1/jobs", "/no-such-path"])
def test_a_request_that_ends_in_two_places_is_refused_and_nothing_after_it_is_read(ask: Ask, path: str) -> None:
    """A proxy that counts bytes would not see the second request, which hides in the body of the first."""
    answer = ask(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        "0\r\n\r\nGET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    )
    assert _status(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"malformed-body" in answer


def test_a_chunked_body_over_the_limit_is_cut_off(ask: Ask) -> None:
    head = b"POST /api/v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    answer = ask(head + b"Transfer-Encoding: chunked\r\n\r\n" + 3 * chunk)
    assert _status(answer) == 413
    assert b"\r\nconnection: close" in answer.lower()
    assert answer.count(b"HTTP/1.1") == 1, "what follows is no second request"


def test_a_body_that_waits_to_be_wanted_is_never_asked_for(ask: Ask) -> None:
    head = b"POST /api/v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = ask(head + b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")
    assert _status(answer) == 413
    assert b"100 Continue" not in answer
