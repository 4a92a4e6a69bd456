"""An application behind a real socket, in a thread of this process, and waiting for what other threads do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI


@contextmanager
def serving(app: FastAPI, **options: Any) -> Iterator[str]:
    """Its address, ``http://127.0.0.1:PORT``. A TestClient has one request at a time and no connection to break off.

    Args:
        options: of uvicorn's Config.
    """
    server = uvicorn.Server(uvicorn.Config(app, port=0, **{"log_level": "warning"} | options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it listened"
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive(), "the server does not stop"


def until(happened: Callable[[], Any], what: str, within_s: float = 30.0) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline, f"waited {within_s} s in vain for: {what}"
        time.sleep(0.01)
