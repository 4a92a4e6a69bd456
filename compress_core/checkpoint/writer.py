"""Write a safetensors file piece by piece: the header first, then each tensor as it comes, then the final name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from compress_core.checkpoint.headers import DTYPE_BYTES
from compress_core.errors import PackedFormatError

_COPY_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Entry:
    """Name, safetensors dtype and shape of one tensor that will be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        total = DTYPE_BYTES[self.dtype]
        for size in self.shape:
            total *= size
        return total


def encode_header(entries: Iterable[Entry], metadata: Mapping[str, str], *, header_bytes: int | None = None) -> bytes:
    """The header with its length in front, padded with spaces to a multiple of 8 or to ``header_bytes``.

    Raises:
        PackedFormatError: the JSON needs more than ``header_bytes``.
    """
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for entry in entries:
        end = position + entry.nbytes
        table[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(table, separators=(",", ":")).encode()
    size = -(-len(raw) // 8) * 8 if header_bytes is None else header_bytes
    if len(raw) > size:
        raise PackedFormatError(f"the header takes {len(raw)} bytes, {size} were set aside for it")
    return size.to_bytes(8, "little") + raw.ljust(size)


class SafetensorsWriter:
    """Context manager: tensors are written in the order of ``entries``; the file gets its name when all are there.

    An exception inside the block removes the temporary file and leaves what was under the final name untouched.
    """

    def __init__(
        self, path: Path, entries: Iterable[Entry], metadata: Mapping[str, str], *, header_bytes: int | None = None
    ) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._entries = list(entries)
        self._header = encode_header(self._entries, metadata, header_bytes=header_bytes)
        self._n_written = 0
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._temporary.open("wb")
        self._stream.write(self._header)
        return self

    def write(self, name: str, data: bytes) -> None:
        """Write the next tensor.

        Raises:
            PackedFormatError: it is not its turn, or its size is not the promised one.
        """
        self._begin(name, len(data)).write(data)

    def write_pieces(self, name: str, nbytes: int, pieces: Iterable[bytes | memoryview]) -> None:
        """Write the next tensor from pieces that are ``nbytes`` long together, so that it never lies in memory whole.

        Raises:
            PackedFormatError: it is not its turn, or its size is not the promised one.
        """
        target = self._begin(name, nbytes)
        left = nbytes
        for piece in pieces:
            left -= len(piece)
            target.write(piece)
        if left:
            raise PackedFormatError(f"the pieces of {name} have {nbytes - left} bytes, {nbytes} were promised")

    def copy(self, name: str, source: Path, offset: int, nbytes: int) -> None:
        """Write the next tensor from a range of bytes of another file, a few MB at a time.

        Raises:
            PackedFormatError: not its turn, not its size, or the file ends before the range does.
        """
        target = self._begin(name, nbytes)
        with source.open("rb") as stream:
            stream.seek(offset)
            while nbytes:
                chunk = stream.read(min(_COPY_CHUNK, nbytes))
                if not chunk:
                    raise PackedFormatError(f"{source} ended while {name} was copied from it")
                target.write(chunk)
                nbytes -= len(chunk)

    def _begin(self, name: str, nbytes: int) -> IO[bytes]:
        assert self._stream is not None, "use the writer as a context manager"
        entry = self._entries[self._n_written] if self._n_written < len(self._entries) else None
        if entry is None or entry.name != name:
            raise PackedFormatError(f"{name} is written out of turn; expected {entry.name if entry else 'nothing'}")
        if nbytes != entry.nbytes:
            raise PackedFormatError(f"{name} has {nbytes} bytes, its header entry promises {entry.nbytes}")
        self._n_written += 1
        return self._stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        complete = kind is None and self._n_written == len(self._entries)
        try:
            self._close(self._stream, complete)
        except OSError:
            complete = False
            if kind is None:  # else the error that ended the block is the one to tell
                raise
        finally:
            if not complete:
                self._temporary.unlink()
        if complete:
            self._temporary.replace(self._path)
        elif kind is None:
            raise PackedFormatError(
                f"{self._path}: {self._n_written} of {len(self._entries)} tensors were written; nothing was kept"
            )

    @staticmethod
    def _close(stream: IO[bytes], sync: bool) -> None:
        """Closing writes what is left, so it fails on a full disk."""
        with stream:
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
