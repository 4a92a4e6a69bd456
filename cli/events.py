"""Server-sent events: parsing, and a stream that survives the server's restart."""

from __future__ import annotations

import io
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from cli.api import Api, ApiProblem
from cli.errors import Unreachable

#: the server pings every 15 s: a stream silent for longer is dead
_SILENCE_S = 45.0
#: how long a server that went away is waited for
_PATIENCE_S = 60.0
_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its id in the stream, its kind, its JSON."""

    id: str | None
    kind: str
    data: dict[str, Any]


def parse_events(lines: Iterable[str]) -> Iterator[Event | None]:
    """Events of a ``text/event-stream`` (WHATWG HTML, 9.2.6); None for each comment, which tells that all is alive."""
    id_: str | None = None
    kind = "message"
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield Event(id_, kind, json.loads("\n".join(data)))
            elif kind != "message":
                yield Event(id_, kind, {})
            kind, data = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                yield None
            case "id":
                id_ = value
            case "event":
                kind = value
            case "data":
                data.append(value)


def lines_of(chunks: Iterable[str]) -> Iterator[str]:
    """Lines that end in CR, LF or both, and in nothing else: JSON may hold U+2028, where ``splitlines`` would cut."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + newlines.decode(chunk)).split("\n")
        yield from lines


def follow(
    api: Api,
    path: str,
    *,
    after: str | None = None,
    on_gap: Callable[[str], None] | None = None,
    patience_s: float = _PATIENCE_S,
    over: threading.Event | None = None,
) -> Iterator[Event | None]:
    """Events of a stream until its event ``end``; None whenever it was opened or proved alive.

    When it breaks it is opened again with Last-Event-ID, so nothing is missed; ``on_gap`` is told. Once ``over`` is set
    nobody cares any more: it is not opened again.

    Raises:
        Unreachable: the server did not come back within ``patience_s``.
        ApiProblem: the server refuses the stream.
    """
    last = after
    # a stream that goes on may repeat some of its last events
    seen: deque[str] = deque(maxlen=500)
    first = int(after) if after is not None and after.isdecimal() else 0
    lost_at: float | None = None
    while True:
        aged = False
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last is not None else {})
        try:
            with api.stream(path, headers=headers, read_timeout_s=_SILENCE_S) as response:
                lost_at = None
                yield None
                for event in parse_events(lines_of(response.iter_text())):
                    if event is None:
                        yield None
                        continue
                    # these two have no id of their own: the parser gives them that of the event before
                    if event.id is not None and event.kind not in ("end", "reconnect"):
                        if event.id in seen or int(event.id) <= first:
                            continue
                        seen.append(event.id)
                    last = event.id or last
                    if event.kind == "reconnect":  # the stream is old enough: a new one goes on where it stopped
                        aged = True
                        break
                    yield event
                    if event.kind == "end":
                        return
        except (httpx.TransportError, Unreachable, ApiProblem) as error:
            if isinstance(error, ApiProblem) and error.status < 500:
                raise
            lost_at = _still_patient(lost_at, patience_s, error, api.url)
        else:
            if aged:
                continue
            lost_at = lost_at or time.monotonic()  # the server closed the stream: it is stopping
        over = over or threading.Event()
        if over.is_set():
            return
        if on_gap is not None:
            on_gap("the event stream broke off: opening it again")
        if over.wait(_PAUSE_S):
            return


def _still_patient(lost_at: float | None, patience_s: float, error: Exception, url: str) -> float:
    if lost_at is None:
        return time.monotonic()
    if time.monotonic() - lost_at > patience_s:
        if isinstance(error, httpx.TransportError):
            raise Unreachable(url, "the event stream broke off") from error
        raise error
    return lost_at
