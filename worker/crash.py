"""Last words of a work horse: a file that tells where Python was, for a parent that finds the process gone.

Python's fault handler writes into it at a segmentation fault, an abort or an illegal instruction. A process that is
killed from outside says nothing; so each heartbeat notes where the job is, and that is what remains.
"""

from __future__ import annotations

import faulthandler
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from results_db.clock import utc_now

log = logging.getLogger(__name__)

_FOLDER = "crashes"
_FAULT = "Fatal Python error"
#: the end of a long dump is cut: its first lines name the thread that failed
_MOST_CHARACTERS = 20_000
_DAY_S = 86400.0


class LastWords:
    """The file of one attempt while its block runs. A disk that is full costs the words and not the job."""

    def __init__(self, var_dir: Path, attempt_id: str) -> None:
        self._path = _path(var_dir, attempt_id)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> LastWords:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # without a buffer: what could not be written is not tried again when the job is done
            self._file = self._path.open("wb", buffering=0)
            faulthandler.enable(self._file)
        except OSError as error:
            log.warning("a crash of this job will leave no traceback: %s", error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()

    def forget(self) -> None:
        """Remove the file: an end that Python lives through is told in the database."""
        faulthandler.disable()
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)

    def note(self) -> None:
        """Write down where every thread is now, instead of what was noted before."""
        if self._file is None:
            return
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(f"At its last heartbeat, {utc_now().isoformat(timespec='seconds')}:\n".encode())
            faulthandler.dump_traceback(self._file)
        except OSError as error:
            log.warning("where the job is could not be noted: %s", error)


def last_words(var_dir: Path, attempt_id: str) -> str | None:
    """What the process of an attempt left behind; None where that is nothing. The file goes."""
    path = _path(var_dir, attempt_id)
    try:
        text = path.read_text(errors="replace").replace("\x00", "\\0")
        path.unlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("the last words of %s cannot be read: %s", attempt_id, error)
        return None
    fault = text.find(_FAULT)
    return text[max(0, fault) :][:_MOST_CHARACTERS].strip() or None


def forget_old(var_dir: Path, days: float) -> None:
    """Remove files that nobody came for."""
    for path in (var_dir / _FOLDER).glob("*.txt"):
        try:
            if time.time() - path.stat().st_mtime > days * _DAY_S:
                path.unlink()
        except FileNotFoundError:  # another worker that starts removes them too
            continue


def _path(var_dir: Path, attempt_id: str) -> Path:
    return var_dir / _FOLDER / f"{attempt_id}.txt"
