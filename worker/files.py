"""Folders that become visible whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

#: a folder on its way to its place; never taken for an artefact
PART_SUFFIX = ".part"


def artefact_bytes(path: Path) -> int:
    """Bytes of a folder's ``*.safetensors`` files, or of a single file: what an artefact's row counts.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*.safetensors"))
    return path.stat().st_size


def files_below(folder: Path) -> list[Path]:
    """Every file of a folder, relative to it, sorted."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def move_folder(source: Path, target: Path) -> None:
    """Rename a finished folder to its place; across filesystems copy it beside its place first.

    Everything is on the disk before the name appears. What an earlier try left at ``target`` is replaced.

    Raises:
        OSError: the disk is full, or not writable; the source is untouched, and nothing is left beside its place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sync_folder(source)
    if target.exists():
        # the same identifier is the same work: a try that was killed before its row was written left this
        shutil.rmtree(target)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = target.with_name(target.name + PART_SUFFIX)
        shutil.rmtree(part, ignore_errors=True)
        try:
            _copy_folder(source, part)
        except OSError:
            # a full disk, most likely: what is half there helps nobody and takes space
            shutil.rmtree(part, ignore_errors=True)
            raise
        part.rename(target)
        shutil.rmtree(source)
    _sync(target.parent)


def _copy_folder(source: Path, target: Path) -> None:
    """File by file: ``shutil.copytree`` tells of a full disk without its number."""
    target.mkdir()
    for path in files_below(source):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / path, target / path)
    sync_folder(target)


def sync_folder(folder: Path) -> None:
    """Write a folder's files, and the folders that name them, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
