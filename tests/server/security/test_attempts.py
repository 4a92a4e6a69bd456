"""Wrong tokens at /login, many at the same moment."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.security.attempts import MOST_FAILURES
from tests.server.security.conftest import Make


def test_wrong_tokens_that_come_at_once_count_as_well(make_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_server(require_token=True).client()
    entered, answer = threading.Semaphore(0), threading.Event()

    def look_up(*_: object) -> None:
        entered.release()
        assert answer.wait(60)

    def try_one(_: int) -> int:
        form = {"token": "bb_" + "x" * 43}
        return client.post("/login", data=form, headers={"Sec-Fetch-Site": "same-origin"}).status_code

    monkeypatch.setattr("server.security.login._open", look_up)
    with ThreadPoolExecutor(MOST_FAILURES) as pool:
        tried = [pool.submit(try_one, number) for number in range(MOST_FAILURES)]
        try:
            for _ in tried:
                assert entered.acquire(timeout=60)
            assert try_one(0) == 429, "none of the others has been answered yet"
        finally:
            answer.set()
        assert [one.result() for one in tried] == [401] * MOST_FAILURES


def test_right_tokens_do_not_count(make_server: Make) -> None:
    server = make_server(require_token=True)
    client = server.client()
    for _ in range(MOST_FAILURES + 2):
        for token in server.tokens.values():
            answer = client.post("/login", data={"token": token}, headers={"Sec-Fetch-Site": "same-origin"})
            assert answer.status_code == 303
