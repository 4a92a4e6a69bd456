"""What can only mean this machine."""

from __future__ import annotations

import pytest

from results_db.loopback import is_every_interface, is_loopback
from results_db.settings import Settings


@pytest.mark.parametrize(
    "host", ["localhost", "a.localhost", "127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.0.0.1.example",
        "localhost.example",
        "::ffff:10.0.0.1",
        "fe80::1%lo",
    ],
)
def test_everything_else(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "every"), [("0.0.0.0", True), ("::", True), ("", True), ("127.0.0.1", False), ("a", False)]
)
def test_every_interface(host: str, every: bool) -> None:
    assert is_every_interface(host) is every


@pytest.mark.parametrize(
    ("host", "require", "needs"),
    [
        ("127.0.0.1", False, False),
        ("::1", False, False),
        ("127.0.0.1", True, True),
        ("0.0.0.0", False, True),
        ("::", False, True),
        ("10.1.2.3", False, True),
        ("box.lan", False, True),
        ("", False, True),
    ],
)
def test_when_a_token_is_needed(host: str, require: bool, needs: bool) -> None:
    assert Settings(host=host, require_token=require).needs_token is needs
