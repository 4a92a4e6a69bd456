"""A disk that fills up within a moment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: bytes
SIZE = 32 << 20


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Leave no byte."""
        with (self.path / "ballast").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                block = b"x" * size
                try:
                    while True:
                        file.write(block)
                except OSError:
                    continue

    def free(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)


@contextmanager
def mounted(path: Path) -> Iterator[SmallDisk]:
    """A tmpfs at an empty folder; skips where this machine lets us mount nothing."""
    if os.geteuid() != 0:
        pytest.skip("a small disk can be mounted by root alone")
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {answer.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    """One for a module's tests."""
    with mounted(tmp_path_factory.mktemp("small")) as disk:
        yield disk
