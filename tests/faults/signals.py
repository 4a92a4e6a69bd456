"""Kill and freeze processes as the kernel, an operator or a laptop's lid does."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any


def kill(pid: int) -> None:
    """kill -9; a horse may have followed its parent already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def freeze(service: Any, pid: int) -> None:
    """SIGSTOP. On SQLite between two writes: a process that is stopped inside one keeps the only write lock."""
    _stop(pid)
    while service.database.is_sqlite and not _writable(service.database.url.database):
        os.kill(pid, signal.SIGCONT)
        _stop(pid)


def _stop(pid: int) -> None:
    """SIGSTOP, and wait until every thread stands still: on a busy machine some go on for a moment."""
    os.kill(pid, signal.SIGSTOP)
    while any(path.read_text().rpartition(")")[2].split()[0] not in "Tt" for path in _threads(pid)):
        time.sleep(0.001)


def _threads(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").glob("*/stat"))


def _writable(path: str) -> bool:
    with closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True
