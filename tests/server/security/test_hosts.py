"""The Host header, and what pages of other sites may send."""

from __future__ import annotations

import pytest

from server.kit.hosts import host_of
from tests.server.security.conftest import Make, Server

PROBLEM = "urn:bitbudget:problem:"


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost", "localhost"),
        ("LocalHost:8000", "localhost"),
        ("localhost.", "localhost"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]:8000", "::1"),
        ("[0:0:0:0:0:0:0:1]", "::1"),
        ("my_server.lan", "my_server.lan"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_hosts_are_parsed(header: str, host: str) -> None:
    assert host_of(header) == host


@pytest.mark.parametrize(
    "header",
    [
        *("", " ", "localhost ", " localhost", "localhost\t", "local host", "localhost,evil.example"),
        *("localhost..", ".localhost", "a..b", "-a.localhost", "a-.localhost"),
        *("user@localhost", "user:pw@localhost", "localhost@evil.example", "evil.example#@localhost"),
        *("localhost/", "localhost/x", "localhost?x", "localhost#x", "localhost\\x", "http://localhost"),
        *("localhost:", "localhost:port", "localhost:-1", "localhost:65536", "localhost:8000:8000", "localhost:８０"),
        *("::1", "[::1", "::1]", "[]", "[localhost]", "[::1%25lo]", "[::1%lo]", "[::1].evil.example", "[127.0.0.1]"),
        *("ｌocalhost", "locaｌhost", "lоcalhost", "localhost\u200b", "127。0。0。1", "ⓛocalhost"),
        *("a" * 64, ".".join(["a" * 60] * 5), "localhost\r\nX: y", "localhost\x00"),
    ],
)
def test_malformed_hosts(at_home: Server, header: str) -> None:
    assert host_of(header) is None
    try:
        raw = header.encode("latin-1")
    except UnicodeEncodeError:
        raw = header.encode()
    answer = at_home.client().get("/livez", headers={"Host": raw})
    assert (answer.status_code, answer.json()["type"]) == (400, PROBLEM + "host-not-allowed")


@pytest.mark.parametrize(
    "header",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.evil.com", "localhost-evil.example"),
        *("notlocalhost", "localhost.localdomain", "127.0.0.1.nip.io", "spoofed.127.0.0.1"),
        # other notations of 127.0.0.1 and of 0.0.0.0 that resolvers take
        *("2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "127.000.000.001"),
        *("0.0.0.0", "0", "[::]", "[::ffff:0.0.0.0]", "192.168.0.1", "169.254.169.254", "[fe80::1]"),
    ],
)
def test_foreign_hosts(at_home: Server, header: str) -> None:
    """A name that an attacker's DNS turns into 127.0.0.1 (rebinding) stays that name."""
    answer = at_home.client().get("/api/v1/jobs", headers={"Host": header})
    assert (answer.status_code, answer.json()["type"]) == (403, PROBLEM + "host-not-allowed")


@pytest.mark.parametrize(
    "header", ["localhost", "localhost.:8000", "a.b.localhost", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_loopback_hosts(at_home: Server, header: str) -> None:
    assert at_home.client().get("/api/v1/jobs", headers={"Host": header}).status_code == 200


def test_one_host_exactly(at_home: Server) -> None:
    client = at_home.client()
    two = client.build_request("GET", "/livez", headers=[("Host", "localhost"), ("Host", "localhost")])
    assert client.send(two).status_code == 400
    none = client.build_request("GET", "/livez")
    del none.headers["host"]
    none.headers["host"] = ""
    assert client.send(none).status_code == 400


def test_configured_hosts_are_exact(make_server: Make) -> None:
    server = make_server(allowed_hosts=("box.lan", "2001:db8::1"), require_token=True)
    for host, status in (
        ("box.lan", 200),
        ("BOX.LAN.:80", 200),
        ("[2001:DB8:0::1]:80", 200),
        ("a.box.lan", 403),
        ("box.lan.evil.example", 403),
        ("[2001:db8::2]", 403),
    ):
        assert server.client().get("/livez", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "BREW"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": ""},
        {"Sec-Fetch-Site": "same-origin, cross-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://localhost:81"},
        {"Origin": "http://evil@localhost:80"},
        {"Origin": "http://[::1"},
    ],
)
def test_pages_of_other_sites_change_nothing(at_home: Server, method: str, headers: dict[str, str]) -> None:
    answer = at_home.client().request(method, "/api/v1/jobs/x/cancel", headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (403, PROBLEM + "cross-site-request")


def test_preflights_get_nothing(at_home: Server) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = at_home.client().options("/api/v1/jobs", headers=headers)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control-")]
