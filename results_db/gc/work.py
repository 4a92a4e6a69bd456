"""Unfinished work, copies of remote artefacts, and what interrupted moves left beside their places."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from results_db.gc.folders import age_days, children, remove_whole, size_of
from results_db.gc.item import Item
from results_db.locks import LOCK_SUFFIX, FileLock

#: what a move leaves beside its place when it is killed: .NAME.RANDOM.old, .NAME.RANDOM.tmp
_LEFTOVER = re.compile(r"\..+\.(old|tmp)")
_HASH = re.compile(r"[0-9a-f]{32}(\.part)?")


def idle_workspaces(var_dir: Path, days: float) -> Iterator[Item]:
    """Folders of unfinished work that nobody holds and nothing has touched for so many days."""
    for kind in children(var_dir / "work"):
        yield from _idle("workspace", kind, days, "unfinished work that nobody goes on with")


def idle_copies(var_dir: Path, days: float) -> Iterator[Item]:
    """Copies of remote artefacts that nobody reads; they can be fetched again."""
    yield from _idle(
        "remote copy", var_dir / "cache" / "artefacts", days, "a copy of a remote artefact, not used lately"
    )


def leftovers(folders: list[Path], days: float) -> Iterator[Item]:
    """What a killed move left beside its place."""
    for folder in folders:
        for path in children(folder):
            if _LEFTOVER.fullmatch(path.name) and age_days(path) >= days:
                yield Item(
                    "leftover", str(path), size_of(path), "a killed move left it", partial(_remove_old, path, days)
                )


def crash_reports(var_dir: Path, days: float) -> Iterator[Item]:
    """Stack dumps of processes that died; their attempts' rows hold the end of each."""
    for path in children(var_dir / "crashes"):
        if path.suffix == ".txt" and path.is_file() and age_days(path) >= days:
            yield Item(
                "crash report", str(path), size_of(path), "its attempt's row has it", partial(_remove_old, path, days)
            )


def _idle(kind: str, folder: Path, days: float, reason: str) -> Iterator[Item]:
    for path in children(folder):
        if not (path.is_dir() and _HASH.fullmatch(path.name)) or age_days(path) < days:
            continue
        lock = FileLock.try_acquire(path.with_suffix(LOCK_SUFFIX))
        if lock is None:
            continue  # somebody works here
        lock.release()
        yield Item(kind, str(path), size_of(path), reason, partial(_remove_idle, path, days))


def _remove_idle(path: Path, days: float) -> bool:
    lock = FileLock.try_acquire(path.with_suffix(LOCK_SUFFIX))
    if lock is None:
        return False
    try:
        if not path.exists() or age_days(path) < days:
            return False
        remove_whole(path)
        return True
    finally:
        lock.release(remove=True)


def _remove_old(path: Path, days: float) -> bool:
    if not path.exists() or age_days(path) < days:
        return False
    remove_whole(path)
    return True
