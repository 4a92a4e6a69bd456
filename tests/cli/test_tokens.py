"""`bitbudget tokens`, and how the command line sends the token that it is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.api import Api, ApiProblem
from cli.credential import find_token, use_token_file
from cli.errors import CliError
from cli.stack.plan import environment, server_url
from results_db import Database
from results_db.settings import Settings
from results_db.tokens import find_token as stored_token

TOKEN = "bb_" + "Ab1_-" * 8 + "xyz"

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def tokens(bitbudget: Callable[..., Any], database_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``bitbudget tokens …`` on a database of one's own."""
    monkeypatch.setenv("BITBUDGET_DATABASE_URL", database_url)
    return lambda *arguments: bitbudget("tokens", *arguments)


def test_a_token_is_made_listed_and_revoked(tokens: Callable[..., Any], database: Database) -> None:
    made = tokens("create", "laptop", "--scope", "write", "--expires", "30d")
    assert made.code == 0, made.err
    secret = made.out.strip()
    assert made.out == secret + "\n", "stdout holds the token alone, for a file"
    assert secret not in made.err
    with database.read() as session:
        found = stored_token(session, secret)
        assert found is not None
        assert (found.name, found.scope) == ("laptop", "write")
        assert found.expires_at is not None
    listed = tokens("list")
    assert "laptop" in listed.out
    assert secret[:7] in listed.out
    assert secret not in listed.out
    assert tokens("revoke", "laptop").code == 0
    with database.read() as session:
        assert stored_token(session, secret) is None
    (row,) = tokens("list", "--json").json
    assert row["state"] == "revoked"
    assert "token_hash" not in row


@sqlite_only
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("create", "a/b", "--scope", "read"), "is no name for a token"),
        (("create", "a", "--scope", "read", "--expires", "soon"), "12h, 30d or 8w"),
        (("revoke", "nobody"), "nobody"),
    ],
)
def test_refusals_say_why(tokens: Callable[..., Any], arguments: tuple[str, ...], says: str) -> None:
    refused = tokens(*arguments)
    assert refused.code == 2
    assert says in refused.err


@sqlite_only
def test_a_database_of_another_release_is_left_alone(tokens: Callable[..., Any], database: Database) -> None:
    with database.write() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    refused = tokens("list")
    assert refused.code == 2
    assert "schema 0001" in refused.err


def test_an_empty_database_gets_its_schema(bitbudget: Callable[..., Any]) -> None:
    assert bitbudget("tokens", "create", "first", "--scope", "admin").code == 0
    assert [row["name"] for row in bitbudget("tokens", "list", "--json").json] == ["first"]


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITBUDGET_TOKEN", "BITBUDGET_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert find_token() is None
    file, other = tmp_path / "token", tmp_path / "other"
    file.write_text(f"{TOKEN}\n")
    other.write_text(TOKEN.swapcase().replace("BB_", "bb_"))
    monkeypatch.setenv("BITBUDGET_TOKEN_FILE", str(file))
    assert find_token() == TOKEN
    monkeypatch.setenv("BITBUDGET_TOKEN", other.read_text())
    assert find_token() == other.read_text()
    use_token_file(str(file))
    try:
        assert find_token() == TOKEN
    finally:
        use_token_file(None)


def test_what_is_no_token_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("hunter2", TOKEN[:-1], f"{TOKEN}\nX-Evil: 1"):
        monkeypatch.setenv("BITBUDGET_TOKEN", text)
        with pytest.raises(CliError) as refused:
            find_token()
        assert text not in str(refused.value)


def test_the_token_goes_to_its_server_alone() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(307, headers={"Location": "http://elsewhere.example/"})

    with Api("http://server", token=TOKEN, transport=httpx.MockTransport(answer)) as api, pytest.raises(CliError):
        api.get("/jobs")
    assert [request.url.host for request in seen] == ["server"]
    assert seen[0].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("slug", ["token-missing", "token-invalid", "scope-missing"])
def test_a_refusal_names_the_cure(slug: str) -> None:
    problem = {"type": f"urn:bitbudget:problem:{slug}", "title": "No", "detail": "not so"}
    response = httpx.Response(401, json=problem, headers={"content-type": "application/problem+json"})
    error = ApiProblem(response)
    assert error.code == 2
    assert "bitbudget tokens" in str(error.cure)


def test_our_programs_do_not_inherit_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITBUDGET_TOKEN", TOKEN)
    monkeypatch.setenv("BITBUDGET_TOKEN_FILE", "token")
    given = environment(Settings(var_dir=tmp_path))
    assert not {"BITBUDGET_TOKEN", "BITBUDGET_TOKEN_FILE"} & given.keys()
    assert TOKEN not in given.values()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("::1", "http://[::1]:1"),
        ("box.lan", "http://box.lan:1"),
    ],
)
def test_an_address_to_listen_on_is_none_to_ask(host: str, url: str) -> None:
    assert server_url(host, 1) == url
