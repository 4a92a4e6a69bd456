"""Server-sent events: parsing, cutting into lines, opening again."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import events
from cli.api import Api, ApiProblem
from cli.errors import Unreachable
from cli.events import Event, follow, lines_of, parse_events


def test_fields_comments_and_unknown_fields() -> None:
    text = ': ping\n\nid: 7\nevent: state\ndata: {"a":\ndata: 1}\nretry: 5\n\ndata: {}\n\nevent: end\n\n'
    assert list(parse_events(text.split("\n"))) == [
        None,
        Event("7", "state", {"a": 1}),
        Event("7", "message", {}),
        Event("7", "end", {}),
    ]


def test_an_event_cut_off_by_the_end_is_not_told() -> None:
    assert list(parse_events(["id: 1", 'data: {"a": 1}'])) == []


@given(st.lists(st.text(st.characters(exclude_characters="\r\n")), max_size=5), st.data())
def test_lines_are_cut_at_cr_and_lf_alone_wherever_chunks_end(lines: list[str], data: st.DataObject) -> None:
    ends = data.draw(st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=len(lines), max_size=len(lines)))
    # a lone CR before an empty line's LF would be one CRLF: keep to one style a text
    end = ends[0] if ends else "\n"
    text = "".join(line + end for line in lines)
    size = data.draw(st.integers(1, 7))
    # a last CR alone stays open, as it may be half of a CRLF
    text += "." + end + "."
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(lines_of(chunks)) == [*lines, "."]


class Streams:
    """A server that answers each connection with the next of several bodies, and remembers Last-Event-ID."""

    def __init__(self, *answers: str | int) -> None:
        self.answers = list(answers)
        self.asked: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.headers.get("Last-Event-ID"))
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            problem = {"type": "urn:bitbudget:problem:x", "title": "X", "status": answer, "detail": "because"}
            return httpx.Response(answer, json=problem, headers={"content-type": "application/problem+json"})
        if answer == "down":
            raise httpx.ConnectError("refused")
        return httpx.Response(200, text=answer, headers={"content-type": "text/event-stream"})


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_PAUSE_S", 0.0)


def api(streams: Streams) -> Api:
    return Api("http://server", transport=httpx.MockTransport(streams))


def test_a_broken_stream_is_opened_again_where_it_left_off() -> None:
    streams = Streams("id: 1\ndata: {}\n\n", "down", 503, 'id: 2\ndata: {}\n\nevent: end\ndata: {"state": "done"}\n\n')
    notes: list[str] = []
    found = [event for event in follow(api(streams), "/events", on_gap=notes.append) if event is not None]
    assert [(event.id, event.kind) for event in found] == [("1", "message"), ("2", "message"), ("2", "end")]
    assert streams.asked == [None, "1", "1", "1"]
    assert len(notes) == 3


def test_an_old_stream_is_opened_again_without_a_word() -> None:
    streams = Streams(
        "id: 1\ndata: {}\n\nevent: reconnect\ndata: {}\n\n", "id: 2\ndata: {}\n\nevent: end\ndata: {}\n\n"
    )
    notes: list[str] = []
    found = [event for event in follow(api(streams), "/events", on_gap=notes.append) if event is not None]
    assert [(event.id, event.kind) for event in found] == [("1", "message"), ("2", "message"), ("2", "end")]
    assert streams.asked == [None, "1"]
    assert notes == []


def test_what_is_repeated_is_told_once_and_what_was_late_as_well() -> None:
    again = "".join(f"id: {id_}\ndata: {{}}\n\n" for id_ in (4, 6, 5, 4))
    streams = Streams("id: 4\ndata: {}\n\nid: 6\ndata: {}\n\n", again + "event: end\ndata: {}\n\n")
    found = [event for event in follow(api(streams), "/events", after="3") if event is not None]
    assert [(event.id, event.kind) for event in found][:3] == [("4", "message"), ("6", "message"), ("5", "message")]
    assert [event.kind for event in found[3:]] == ["end"]
    assert streams.asked == ["3", "6"]


def test_a_refusal_is_not_tried_again() -> None:
    streams = Streams(404, "never")
    with pytest.raises(ApiProblem, match="because"):
        list(follow(api(streams), "/jobs/job_none/events"))
    assert len(streams.asked) == 1


def test_patience_ends() -> None:
    streams = Streams("down", "down", "down")
    with pytest.raises(Unreachable):
        list(follow(api(streams), "/events", patience_s=-1.0))
