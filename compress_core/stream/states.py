"""HiddenStates: the hidden states (N, T, D) of all samples between two layers, in memory or in mapped files.

A layer's run is a transaction: ``begin``, ``read`` and ``write`` every part once, ``commit``. In memory the states are
replaced in place, so an interrupted run leaves nothing of use. Mapped files come in twos: a layer reads one and writes
the other, and the small file that says which is current is replaced when the other is on disk. A killed run goes on
from the last layer that was committed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from compress_core.errors import CheckpointError, OutOfMemory

#: states of at most so many bytes are held in memory
DEFAULT_RAM_BYTES = 4 << 30


class HiddenStates(Protocol):
    """States before layer ``layer_idx``; None: nothing of use, begin with the embedding."""

    layer_idx: int | None

    def read(self, part: slice) -> Tensor:
        """The states (B, T, D) of some samples, on the CPU."""

    def begin(self) -> None:
        """A layer's run begins."""

    def write(self, part: slice, hidden_BTD: Tensor) -> None:
        """What the run makes of these samples; after they were read."""

    def commit(self, layer_idx: int) -> None:
        """Every part was written: the states are those before ``layer_idx``."""

    def close(self) -> None:
        """They are not needed any more: memory and files go."""


def open_states(
    folder: Path, shape: tuple[int, int, int], dtype: torch.dtype, *, owner: str, ram_bytes: int = DEFAULT_RAM_BYTES
) -> HiddenStates:
    """States in memory if they take no more than ``ram_bytes``, else in files under ``folder``.

    Files that a killed run of the same ``owner`` (any text that names what is computed) left are gone on with.

    Raises:
        OutOfMemory: the disk has no room for them.
    """
    nbytes = shape[0] * shape[1] * shape[2] * dtype.itemsize
    return RamStates(shape, dtype) if nbytes <= ram_bytes else MappedStates(folder, shape, dtype, owner=owner)


class RamStates:
    """States in memory, replaced in place."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.layer_idx: int | None = None
        self._hidden_NTD: Tensor | None = torch.empty(shape, dtype=dtype)

    def read(self, part: slice) -> Tensor:
        assert self._hidden_NTD is not None, "the states were closed"
        return self._hidden_NTD[part]

    def begin(self) -> None:
        self.layer_idx = None

    def write(self, part: slice, hidden_BTD: Tensor) -> None:
        assert self._hidden_NTD is not None, "the states were closed"
        self._hidden_NTD[part] = hidden_BTD.cpu()

    def commit(self, layer_idx: int) -> None:
        self.layer_idx = layer_idx

    def close(self) -> None:
        self.layer_idx, self._hidden_NTD = None, None


class MappedStates:
    """States in two mapped files and one that says which is current.

    The pages are the page cache's: they go to disk when memory is short, instead of exhausting it.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], dtype: torch.dtype, *, owner: str) -> None:
        self._shape = shape
        self._nbytes = shape[0] * shape[1] * shape[2] * dtype.itemsize
        self._identity = [owner, list(shape), str(dtype)]
        self._files = [folder / "states-0.bin", folder / "states-1.bin"]
        self._marker = folder / "states.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.layer_idx, self._current = self._left_over()
        self._buffers: list[Tensor] = []
        for file in self._files:
            self._allocate(file)
            mapped = torch.from_file(str(file), shared=True, size=self._nbytes // dtype.itemsize, dtype=dtype)
            self._buffers.append(mapped.view(shape))

    def read(self, part: slice) -> Tensor:
        return self._buffers[self._current][part]

    def begin(self) -> None:
        """Nothing changes: the current file stays as it is until the other is complete."""

    def write(self, part: slice, hidden_BTD: Tensor) -> None:
        self._buffers[1 - self._current][part] = hidden_BTD.cpu()

    def commit(self, layer_idx: int) -> None:
        other = 1 - self._current
        descriptor = os.open(self._files[other], os.O_RDWR)
        try:
            os.fsync(descriptor)  # mapped pages that were written belong to the file's dirty pages
        finally:
            os.close(descriptor)
        temporary = self._marker.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps({"identity": self._identity, "layer_idx": layer_idx, "current": other}))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._marker)
        self.layer_idx, self._current = layer_idx, other

    def close(self) -> None:
        self.layer_idx = None
        self._buffers.clear()
        self._marker.unlink(missing_ok=True)
        for file in self._files:
            file.unlink(missing_ok=True)

    def _left_over(self) -> tuple[int | None, int]:
        """What a killed run left: the layer that the states are before, and the file; (None, 0) where of no use."""
        try:
            values = json.loads(self._marker.read_text("utf-8"))
            current, layer_idx = int(values["current"]), int(values["layer_idx"])
            if values["identity"] == self._identity and self._files[current].stat().st_size == self._nbytes:
                return layer_idx, current
        except FileNotFoundError:
            return None, 0
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise CheckpointError(f"{self._marker} is damaged: delete the folder and start anew") from error
        self._marker.unlink()  # of another run
        return None, 0

    def _allocate(self, file: Path) -> None:
        """Take the room now: a full disk under a mapping would kill the process without a word."""
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(descriptor, self._nbytes)
            os.posix_fallocate(descriptor, 0, self._nbytes)
        except OSError as error:
            free = shutil.disk_usage(file.parent).free
            raise OutOfMemory(
                f"no room for the hidden states: two files of {self._nbytes} bytes are needed in {file.parent}, "
                f"{free} bytes are free ({error.strerror}): take fewer samples, bfloat16, or another folder"
            ) from error
        finally:
            os.close(descriptor)
