"""Folders: how old and how large they are, and how they go."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

DAY_S = 86_400.0


def age_days(path: Path) -> float:
    """Days since anything in it was written, or it came to its place; 0 where it is just going.

    A rename leaves the times of writing alone and sets the time of change.
    """
    try:
        newest = max(_touched(path), *(_touched(part) for part in path.rglob("*")), 0.0)
    except FileNotFoundError:
        return 0.0
    return (time.time() - newest) / DAY_S


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed."""
    if path.is_file() or path.is_symlink():
        return path.lstat().st_size
    return sum(part.lstat().st_size for part in path.rglob("*") if part.is_file() or part.is_symlink())


def children(folder: Path) -> Iterator[Path]:
    """What lies in a folder, links left out; nothing where there is no folder."""
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if not path.is_symlink())


def remove_whole(path: Path) -> None:
    """Take a folder away under its name at once, then remove it: nobody finds half of it."""
    bury(path)()


def bury(path: Path) -> Callable[[], None]:
    """Take a folder away under its name at once; what is returned then removes it, which may take minutes. A kill in
    between leaves what the next collection calls a leftover."""
    if not path.is_dir():
        return partial(path.unlink, missing_ok=True)
    grave = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    os.replace(path, grave)
    return partial(shutil.rmtree, grave)


def _touched(path: Path) -> float:
    facts = path.lstat()
    return max(facts.st_mtime, facts.st_ctime)
