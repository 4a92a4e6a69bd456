"""CardLock: a card belongs to one worker of this machine, whatever folder each works in.

The lock is the kernel's, on a file that the card's UUID names, in two folders: the temporary one of the machine, which
all checkouts and users share, and the worker's own, which containers share that have a temporary folder each.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from worker.errors import DeviceUnavailable

#: not tempfile.gettempdir(): TMPDIR may be each user's or each session's own
MACHINE_LOCKS = Path("/tmp")  # noqa: S108 - names are fixed so that others find them; they are opened without trust

#: a FIFO must not make us wait for its other end, nor a link lead us elsewhere
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
_NOT_OURS = "somebody has put something else in its place: look what it is, and remove it"


class CardLock:
    """Held until the end of the block, of this process and of those that it forked."""

    def __init__(self, uuid: str, folders: Sequence[Path]) -> None:
        self.paths = [folder / f"bitbudget-{uuid}.lock" for folder in folders]
        #: who has it, where ``take`` found it taken
        self.owner: str | None = None
        self._held = ExitStack()

    def take(self) -> bool:
        """Whether it is ours now; where it is not, ``owner`` says whose.

        Raises:
            DeviceUnavailable: a lock file cannot be opened, or is none.
        """
        for path in self.paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = self._held.enter_context(_open(path))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.owner = _owner(file)
                self._held.close()
                return False
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        return True

    def __enter__(self) -> CardLock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._held.close()


def _open(path: Path) -> IO[str]:
    """A plain file that any user of the machine may lock. Nobody removes it: a lock on a file that is gone is none."""
    while True:
        try:
            try:
                number = os.open(path, _FLAGS)
            except FileNotFoundError:
                # not O_CREAT alone: the kernel refuses it for another user's file in a folder that all may write to
                number = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(number, 0o666)  # whatever the umask
        except FileExistsError:  # made by somebody in between, or a link that leads nowhere
            if path.is_symlink():
                raise DeviceUnavailable(f"{path} is no lock file: {_NOT_OURS}") from None
            continue
        except OSError as error:
            raise DeviceUnavailable(f"the lock file {path} cannot be opened: {error.strerror}; {_NOT_OURS}") from error
        status = os.fstat(number)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            return os.fdopen(number, "r+")
        os.close(number)
        if status.st_nlink != 0:  # 0: removed since we opened it
            raise DeviceUnavailable(f"{path} is no lock file: {_NOT_OURS}")


def _owner(file: IO[str]) -> str:
    written = file.read(20)
    return f"locked by pid {written if re.fullmatch(r'[0-9]+', written) else 'unknown'}"
