"""Wait for the end of a job or study: events ring, the API is asked what it looks like now."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from cli.api import Api
from cli.errors import CliError, ExitCode
from cli.events import follow
from cli.watch.snapshot import Snapshot, path_of, take

#: at most so often is the API asked
_REFRESH_S = 0.5


class Presenter(Protocol):
    """Shows snapshots as they come."""

    def __enter__(self) -> Presenter: ...

    def __exit__(self, *exc: object) -> None: ...

    def show(self, snapshot: Snapshot) -> None: ...

    def note(self, message: str) -> None: ...


def wait_for(
    api: Api, id_: str, presenter: Presenter, *, timeout_s: float | None = None, poll_s: float | None = None
) -> Snapshot:
    """Show progress until the end and return the last snapshot.

    Without ``poll_s`` the event stream says when to look; with it the API is asked every so many seconds.

    Raises:
        CliError: ``timeout_s`` ran out (exit code TIMEOUT); the work goes on.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    rings: queue.Queue[Exception | None] = queue.Queue()
    over = threading.Event()
    with ExitStack() as held:
        held.enter_context(presenter)
        held.callback(over.set)
        snapshot = take(api, id_)
        presenter.show(snapshot)
        if poll_s is None and not snapshot.finished:
            _listen(api, id_, rings, presenter.note, over)
        last_look = time.monotonic()
        while not snapshot.finished:
            if deadline is not None and time.monotonic() > deadline:
                raise CliError(
                    f"{id_} is still {snapshot.row['state']} after {timeout_s:.0f} s",
                    cure=f"it goes on; wait again with `bitbudget wait {id_}`",
                    code=ExitCode.TIMEOUT,
                )
            if not _rung(rings, poll_s):
                continue
            time.sleep(max(0.0, last_look + _REFRESH_S - time.monotonic()))
            last_look = time.monotonic()
            snapshot = take(api, id_)
            presenter.show(snapshot)
    return snapshot


def _listen(
    api: Api, id_: str, rings: queue.Queue[Exception | None], note: Callable[[str], None], over: threading.Event
) -> None:
    """Put a ring into the queue for each event, and the error with which the stream ended for good.

    The stream has a client of its own: the caller may close its one while the thread still reads.
    """

    def run() -> None:
        try:
            with api.another() as own:
                for _event in follow(own, f"{path_of(id_)}/events", on_gap=note, over=over):
                    rings.put(None)
        except CliError as error:
            rings.put(error)

    threading.Thread(target=run, name="events", daemon=True).start()


def _rung(rings: queue.Queue[Exception | None], poll_s: float | None) -> bool:
    """Whether it is time to look. All that has rung meanwhile is one ring."""
    if poll_s is not None:
        time.sleep(poll_s)
        return True
    try:
        ring = rings.get(timeout=0.5)
    except queue.Empty:
        return False
    while ring is None and not rings.empty():
        ring = rings.get_nowait()
    if ring is not None:
        raise ring
    return True
