"""A full disk, said so that somebody can do something about it."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from results_db.disk import free_bytes
from worker.errors import DiskFull

#: what the operating system calls it, also through libraries that keep only the text
_TEXT = "No space left on device"


def is_disk_full(error: BaseException) -> bool:
    """Whether this error, or what caused it, is a lack of space or of quota on a disk of this host.

    The database's disk is none: its server may stand elsewhere, and writes to it are tried again.
    """
    if isinstance(error, DBAPIError):
        return False
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if _TEXT in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def naming_full_disks(folders: Iterable[Path]) -> Iterator[None]:
    """Turn an error of the block that means a full disk into one that names path and cure.

    Args:
        folders: what the block writes into.

    Raises:
        DiskFull: in place of that error.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(_message(error, folders)) from error


def _message(error: BaseException, folders: Iterable[Path]) -> str:
    path = getattr(error, "filename", None)
    space = "; ".join(f"{folder} has {free_bytes(folder):,} bytes left" for folder in folders)
    where = f" at {path}" if path else ""
    return (
        f"no space left{where} ({space}): free some space (bitbudget gc lists what no row refers to) and retry "
        "the job; what it has finished is kept"
    )
