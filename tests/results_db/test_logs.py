"""Log lines: the ids that are bound, both formats, and no secret in either."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextvars import copy_context
from threading import Thread
from typing import Any

import pytest

from results_db.logs import JsonLines, TextLines, bind, configure_logs, current_trace, new_trace, readable, trace_from
from results_db.masking import mask

log = logging.getLogger("results_db.test_logs")

SECRET = "hunter2hunter2"


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def written(root_logger: logging.Logger) -> Callable[..., list[dict[str, Any]]]:
    """Run something with JSON logs; the lines."""

    def run(action: Callable[[], None]) -> list[dict[str, Any]]:
        stream = io.StringIO()
        configure_logs("json", stream=stream)
        action()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return run


def test_a_line_carries_what_is_bound(written: Callable[..., list[dict[str, Any]]]) -> None:
    def action() -> None:
        with bind(trace_id="trace-1", job_id="job_1", study_id=None):
            assert current_trace() == "trace-1"
            with bind(attempt_id="att_1"):
                log.info("inside %d", 1, extra={"seconds": 0.5})
            log.info("outer")
        log.info("outside")

    inside, outer, outside = written(action)
    assert list(inside)[:4] == ["time", "level", "logger", "message"]
    assert (inside["level"], inside["logger"], inside["message"]) == ("info", log.name, "inside 1")
    assert {key: inside[key] for key in inside if key.endswith("_id")} == {
        "trace_id": "trace-1",
        "job_id": "job_1",
        "attempt_id": "att_1",
    }
    assert inside["seconds"] == 0.5
    assert outer["job_id"] == "job_1"
    assert "attempt_id" not in outer
    assert "trace_id" not in outside


def test_a_thread_takes_the_ids_along_in_a_copy_of_the_context(written: Callable[..., list[dict[str, Any]]]) -> None:
    def action() -> None:
        with bind(job_id="job_1"):
            thread = Thread(target=copy_context().run, args=(log.info, "beat"))
            thread.start()
            thread.join()

    assert [line["job_id"] for line in written(action)] == ["job_1"]


def test_an_exception_is_one_line(written: Callable[..., list[dict[str, Any]]]) -> None:
    def action() -> None:
        try:
            raise ValueError(f"no such host: postgresql://me:{SECRET}@db/x")
        except ValueError:
            log.exception("it failed")

    (line,) = written(action)
    assert line["exception"].startswith("Traceback")
    assert "me:***@db" in line["exception"]
    assert SECRET not in json.dumps(line)


def test_uvicorn_and_rq_speak_the_same_way(root_logger: logging.Logger) -> None:
    for name in ("uvicorn", "rq.worker"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    stream = io.StringIO()
    configure_logs("json", stream=stream)
    logging.getLogger("uvicorn.error").warning("from uvicorn")
    logging.getLogger("rq.worker").warning("from rq")
    logging.getLogger("uvicorn.access").info("twice told")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["from uvicorn", "from rq"]


def test_auto_is_json_where_nobody_looks(root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, formatter in ((io.StringIO(), JsonLines), (Terminal(), TextLines)):
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logs("auto")
        (handler,) = root_logger.handlers
        assert type(handler.formatter) is formatter


def test_text_for_people_has_the_ids_and_no_forged_line() -> None:
    record = logging.LogRecord("a.b", logging.WARNING, __file__, 1, "GET %s", ("/x\n2026 INFO forged",), None)
    with bind(job_id="job_1"):
        line = TextLines().format(record)
    assert "\n" not in line
    assert line.endswith(r"WARNING a.b: GET /x\n2026 INFO forged  [job_id=job_1]")


@pytest.mark.parametrize("evil", ["\n", "\r", "\x1b[2J", "\x85", "\u2028", "\x9b2J", "\x00"])
def test_no_text_forges_a_line_or_commands_a_terminal(evil: str) -> None:
    """Neither in the message, nor in a field, nor when a JSON line is shown as text."""
    record = logging.LogRecord("a.b", logging.INFO, __file__, 1, "GET %s", (f"/x{evil}y",), None)
    record.path = f"/x{evil}y"
    for line in (TextLines().format(record), readable(JsonLines().format(record))):
        assert evil not in line
        assert line.count("/x\\") == 2


def test_a_json_line_can_be_read_by_people() -> None:
    record = logging.LogRecord("a.b", logging.INFO, __file__, 1, "hello", (), None)
    with bind(job_id="job_1"):
        as_json, as_text = JsonLines().format(record), TextLines().format(record)
    assert readable(as_json) == as_text
    assert readable("1:M * Ready to accept connections") == "1:M * Ready to accept connections"
    assert readable('{"time" broken') == '{"time" broken'


def test_a_lone_surrogate_does_not_end_the_log(written: Callable[..., list[dict[str, Any]]]) -> None:
    (line,) = written(lambda: log.info("file %s", "a\udcffb"))
    assert line["message"] == "file a?b"


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql+psycopg://me:{SECRET}@db:5432/x",
        f"postgresql://me:p@{SECRET}@db/x",
        f"redis://:{SECRET}@cache:6379/0",
        f"Authorization: Bearer {SECRET}",
        f"authorization=Basic {SECRET}",
        f"{{'authorization': 'Bearer {SECRET}'}}",
        f"called with bearer {SECRET}",
        f"Set-Cookie: bitbudget={SECRET}; HttpOnly",
        f"host=db password={SECRET} user=me",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"https://store/x?X-Amz-Signature={SECRET}&a=b",
        f'{{"token": "{SECRET}"}}',
    ],
)
def test_secrets_are_masked_in_messages_and_fields(text: str, written: Callable[..., list[dict[str, Any]]]) -> None:
    assert SECRET not in mask(text)
    lines = written(lambda: log.info("%s", text, extra={"about": text, "redis_token": SECRET}))
    assert SECRET not in json.dumps(lines)


@pytest.mark.parametrize(
    "text", ["n_tokens=512 token_hash=ab12", "GET /api/v1/tokens 200", "the token is gone", "http://a:8000/b@c"]
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask(text) == text


def test_a_trace_id_is_taken_only_where_it_is_well_formed() -> None:
    w3c = "4bf92f3577b34da6a3ce929d0e0e4736"
    assert trace_from(f"00-{w3c}-00f067aa0ba902b7-01", "other-one") == w3c
    assert trace_from(f"00-{'0' * 32}-00f067aa0ba902b7-01", None) is None
    assert trace_from("nonsense", "my_trace-1") == "my_trace-1"
    for bad in ("short", "x" * 65, "a b c d e f", "new\nline-here", "a-line-break\n", ""):
        assert trace_from(None, bad) is None
    assert trace_from(None, new_trace()) is not None
