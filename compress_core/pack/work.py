"""WorkFolder: where a packed model grows, layer by layer, until it is whole; with a fixed place it survives a kill.

    WORK/lock            held while somebody works here
    WORK/<binding>/      files of the model whose checkpoint, configs, H and numerics ``binding`` stands for

Files get their names when they are complete and on the disk. What has another binding is removed, never trusted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from compress_core.errors import WorkInProgress

_LOCK = "lock"


@contextmanager
def work_folder(out_dir: Path, work_dir: Path | None, binding: str) -> Iterator[Path]:
    """The folder to write a model into; it gets the name ``out_dir`` if the block ends well.

    Without ``work_dir`` it is a new one beside ``out_dir`` and goes with whatever ends the block. With it, it lies
    below ``work_dir``, holds what an earlier call with this binding left there, and stays until the block ends well.

    Raises:
        WorkInProgress: another process works in ``work_dir``.
    """
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    if work_dir is None:
        folder = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", suffix=".tmp", dir=out_dir.parent))
        folder.chmod(0o755)
        try:
            yield folder
            _put(folder, out_dir)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    with _locked(work_dir):
        folder = work_dir / binding
        for other in work_dir.iterdir():
            if other.is_dir() and other != folder:
                shutil.rmtree(other)
        folder.mkdir(exist_ok=True)
        for unfinished in folder.glob(".*.tmp"):
            unfinished.unlink()
        yield folder
        _put(folder, out_dir)
        shutil.rmtree(work_dir)


@contextmanager
def _locked(work_dir: Path) -> Iterator[None]:
    """Hold the lock; the kernel lets go of it if this process dies."""
    stream = _open_lock(work_dir)
    try:
        yield
    finally:
        stream.close()


def _open_lock(work_dir: Path) -> IO[bytes]:
    path = work_dir / _LOCK
    while True:
        work_dir.mkdir(parents=True, exist_ok=True)
        try:
            stream = path.open("ab")
        except FileNotFoundError:
            continue  # its last holder has finished and is removing the folder
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except BlockingIOError:
            stream.close()
            raise WorkInProgress(f"another process compresses in {work_dir}: wait until it has ended") from None
        except FileNotFoundError:  # removed between our open and our lock
            stream.close()
            continue
        stream.close()


def _put(folder: Path, out_dir: Path) -> None:
    """Give a finished folder its name; what was there before is gone once it is there, and back if it cannot be."""
    old = None
    if out_dir.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", suffix=".old", dir=out_dir.parent))
        os.replace(out_dir, old)
    try:
        _move(folder, out_dir)
    except BaseException:
        if old is not None and not out_dir.exists():
            os.replace(old, out_dir)
        raise
    if old is not None:
        shutil.rmtree(old)


def _move(folder: Path, out_dir: Path) -> None:
    try:
        os.replace(folder, out_dir)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(folder, out_dir)


def _copy(folder: Path, out_dir: Path) -> None:
    """To another file system; whole or not at all there."""
    beside = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", suffix=".tmp", dir=out_dir.parent))
    try:
        shutil.copytree(folder, beside, dirs_exist_ok=True)
        os.replace(beside, out_dir)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
