"""Workspaces: folders of unfinished work that survive a kill, one process at a time in each."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from results_db.locks import LOCK_SUFFIX, FileLock
from worker.files import PART_SUFFIX

log = logging.getLogger(__name__)

_DAY_S = 86_400.0


class Workspaces:
    """Folders ``root/<kind>/<hash of key>``, each with a lock file beside it.

    A lock is held until the attempt ends, with its process at the latest, so that a killed job frees its workspace.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._locks: dict[Path, FileLock] = {}

    def open(self, kind: str, key: str, *, check: Callable[[], None]) -> Path:
        """The folder of that key, with what an earlier try left in it. Waits while another process works there.

        ``check`` is called while waiting; whatever it raises ends the wait.
        """
        folder = self.root / kind / hashlib.sha256(key.encode()).hexdigest()[:32]
        if folder not in self._locks:
            path = _lock_of(folder)
            lock = FileLock.try_acquire(path)
            if lock is None:
                log.info("another process works in %s: waiting for it", folder)
                lock = FileLock.acquire(path, check=check)
            self._locks[folder] = lock
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def close_all(self) -> None:
        """Remove every workspace of this process: its job is done."""
        for folder in list(self._locks):
            self.close(folder)

    def leave_all(self) -> None:
        """Let go of every workspace of this process and leave what is in it to another attempt."""
        while self._locks:
            self._locks.popitem()[1].release()

    def close(self, folder: Path) -> None:
        """Remove a workspace whose contents were moved away or are of no more use. Folders of others stay."""
        lock = self._locks.pop(folder, None)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release(remove=True)


def clean_stale(root: Path, days: float) -> list[Path]:
    """Remove the folders below ``root`` that nothing touched for so many days and nobody holds; which they were.

    For workspaces (``root/<kind>/<hash>``) and for the cache of fetched artefacts (``root/<hash>``) alike.
    """
    removed = []
    for lock_path in list(root.rglob(f"*{LOCK_SUFFIX}")):
        lock = FileLock.try_acquire(lock_path)
        if lock is None:
            continue
        try:
            removed += _clean_one(lock_path, lock, days)
        except OSError as error:
            log.warning("what %s guards could not be cleared away: %s", lock_path, error)
        finally:
            lock.release()
    return removed


def _clean_one(lock_path: Path, lock: FileLock, days: float) -> list[Path]:
    folders = [path for path in (lock_path.with_suffix(""), lock_path.with_suffix(PART_SUFFIX)) if path.exists()]
    touched = [path.stat().st_mtime for folder in folders for path in (folder, *folder.rglob("*"))]
    if max([lock_path.stat().st_mtime, *touched]) > time.time() - days * _DAY_S:
        return []
    for folder in folders:
        shutil.rmtree(folder)
        log.info("removed %s: untouched for %g days", folder, days)
    lock.release(remove=True)
    return folders


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(LOCK_SUFFIX)
