"""Tokens and page sessions: made once, stored as hashes, gone when revoked or expired."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from results_db import Database
from results_db.clock import utc_now
from results_db.errors import NotFound
from results_db.page_sessions import close_session, find_session, open_session
from results_db.tables import PageSession, Token
from results_db.tokens import (
    Scope,
    TokenRefused,
    create_token,
    find_token,
    hash_secret,
    list_tokens,
    note_use,
    parse_age,
    revoke_token,
)


def test_only_a_hash_is_stored(database: Database) -> None:
    with database.write() as session:
        made = create_token(session, "laptop", Scope.READ)
    assert made.secret.startswith("bb_")
    assert len(made.secret) == 3 + 43, "32 random bytes"
    with database.read() as session:
        row = session.scalars(select(Token)).one()
    values = row.as_dict()
    assert values["token_hash"] == hash_secret(made.secret)
    assert values["hint"] == made.secret[:7]
    assert not any(made.secret in str(value) for value in values.values())


def test_a_token_is_found_by_itself_alone(database: Database) -> None:
    with database.write() as session:
        made = create_token(session, "laptop", Scope.WRITE)
        other = create_token(session, "robot", Scope.READ)
        assert made.secret != other.secret
    with database.read() as session:
        found = find_token(session, made.secret)
        assert found is not None
        assert (found.name, found.scope) == ("laptop", "write")
        for wrong in ("", made.secret[:-1], made.secret + "A", made.secret.swapcase(), hash_secret(made.secret)):
            assert find_token(session, wrong) is None


def test_revoking_ends_the_token_and_its_sessions_at_once(database: Database) -> None:
    with database.write() as session:
        made = create_token(session, "laptop", Scope.READ)
        kept = create_token(session, "robot", Scope.READ)
        cookie = open_session(session, made.row, timedelta(hours=12)).secret
        other = open_session(session, kept.row, timedelta(hours=12)).secret
    with database.write() as session:
        assert find_session(session, cookie) is not None
        assert revoke_token(session, "laptop").id == made.row.id
    with database.write() as session:
        assert find_token(session, made.secret) is None
        assert find_session(session, cookie) is None
        assert find_session(session, other) is not None
        assert len(session.scalars(select(PageSession)).all()) == 1
        with pytest.raises(NotFound, match="laptop"):
            revoke_token(session, "laptop")
        # the name is free again, and the old one stays in the list
        again = create_token(session, "laptop", Scope.READ)
        assert [token.name for token in list_tokens(session)] == ["laptop", "robot", "laptop"]
        assert revoke_token(session, again.row.id).id == again.row.id


def test_an_expired_token_lets_nobody_in_and_ends_its_sessions(database: Database) -> None:
    with database.write() as session:
        made = create_token(session, "guest", Scope.READ, lasts=timedelta(hours=1))
        opened = open_session(session, made.row, timedelta(hours=12))
        assert opened.row.expires_at == made.row.expires_at, "no session outlives its token"
        assert find_token(session, made.secret) is not None
        session.execute(update(Token).values(expires_at=utc_now() - timedelta(seconds=1)))
        session.expire_all()
        assert find_token(session, made.secret) is None
        assert find_session(session, opened.secret) is None


def test_a_session_ends_by_time_and_when_asked_to(database: Database) -> None:
    with database.write() as session:
        token = create_token(session, "laptop", Scope.READ).row
        first, second = (open_session(session, token, timedelta(hours=12)) for _ in range(2))
        assert first.row.secret_hash == hash_secret(first.secret)
        close_session(session, first.secret)
        assert find_session(session, first.secret) is None
        session.execute(update(PageSession).values(expires_at=utc_now() - timedelta(seconds=1)))
        session.expire_all()
        assert find_session(session, second.secret) is None
        open_session(session, token, timedelta(hours=12))
        assert len(session.scalars(select(PageSession)).all()) == 1, "ended ones are removed"


def test_use_is_noted_to_the_minute(database: Database) -> None:
    def used() -> object:
        with database.read() as session:
            return session.scalars(select(Token.last_used_at)).one()

    with database.write() as session:
        token_id = create_token(session, "laptop", Scope.READ).row.id
    assert used() is None
    with database.write() as session:
        note_use(session, token_id)
    first = used()
    assert first is not None
    with database.write() as session:
        note_use(session, token_id)
    assert used() == first
    with database.write() as session:
        session.execute(update(Token).values(last_used_at=utc_now() - timedelta(minutes=2)))
        note_use(session, token_id)
    assert used() > first  # type: ignore[operator]


def test_a_name_is_given_once(database: Database) -> None:
    with database.write() as session:
        create_token(session, "laptop", Scope.READ)
        with pytest.raises(TokenRefused, match="works already"):
            create_token(session, "laptop", Scope.ADMIN)


def test_a_name_is_given_once_to_two_who_ask_at_the_same_moment(database: Database) -> None:
    def create(_: int) -> bool:
        try:
            with database.write() as session:
                create_token(session, "laptop", Scope.READ)
        except TokenRefused:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(create, range(4))) == [False, False, False, True]


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", ["", " x", "a" * 101, "a\nb", "a\x00b", "<b>"])
def test_names_that_are_none(database: Database, name: str) -> None:
    with database.write() as session, pytest.raises(TokenRefused, match="is no name"):
        create_token(session, name, Scope.READ)


def test_scopes_hold_the_ones_before_them() -> None:
    read, write, admin = Scope
    assert [admin.includes(s) for s in Scope] == [True, True, True]
    assert [write.includes(s) for s in Scope] == [True, True, False]
    assert [read.includes(s) for s in (read, write, admin)] == [True, False, False]


@pytest.mark.parametrize(("text", "age"), [("12h", 12 / 24), ("30d", 30), ("8w", 56)])
def test_spans_of_time(text: str, age: float) -> None:
    assert parse_age(text) == timedelta(days=age)


@pytest.mark.parametrize("text", ["", "0d", "-1d", "1", "1y", "1d ", "1.5d", "999999d", "1D"])
def test_spans_of_time_that_are_none(text: str) -> None:
    with pytest.raises(TokenRefused, match="12h, 30d or 8w"):
        parse_age(text)
