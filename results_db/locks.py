"""FileLock: one file, held by one process to write or by many to read. The kernel frees it when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

#: of a lock file beside the folder that it guards
LOCK_SUFFIX = ".lock"
_POLL_S = 0.2


class FileLock:
    """A lock on ``path``. It lasts as long as this object, until ``release``, or the end of this process and of what it
    forked."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file

    @classmethod
    def acquire(cls, path: Path, *, shared: bool = False, check: Callable[[], None]) -> FileLock:
        """Wait for the lock; ``check`` is called while waiting and may raise to give up."""
        while (lock := cls.try_acquire(path, shared=shared)) is None:
            check()
            time.sleep(_POLL_S)
        return lock

    @classmethod
    def try_acquire(cls, path: Path, *, shared: bool = False) -> FileLock | None:
        """The lock, or None where another process has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = path.open("ab")
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return None
            if _is_still(file, path):
                return cls(path, file)
            # its last holder removed it between our open and our lock
            file.close()

    def release(self, *, remove: bool = False) -> None:
        """Let go; ``remove`` takes the file away as well, only for a lock that is not shared."""
        if remove:
            self.path.unlink(missing_ok=True)
        self._file.close()


def _is_still(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
