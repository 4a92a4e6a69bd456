"""Archive: the arrays of an ``.npz`` by their headers, and one at a time. Torch-free: a server checks before a job.

Nothing is ever unpickled: arrays of objects are refused by their headers, and numpy reads with ``allow_pickle=False``.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from compress_core.errors import CalibrationError
from compress_core.regular import open_regular

_SUFFIX = ".npy"
_CHUNK = 1 << 22
_MAX_HEADER_BYTES = 10_000


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """Shape and dtype of one array, as its header tells them."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Archive:
    """An ``.npz`` whose arrays can all be read without running code."""

    path: Path
    arrays: dict[str, ArrayHeader]

    @classmethod
    def open(cls, path: Path | str) -> Archive:
        """Read the headers.

        Raises:
            CalibrationError: no such file, no zip, a damaged one, something in it that is no array, arrays of objects.
        """
        path = Path(path)
        arrays = {}
        with _readable(path), open_regular(path) as file, zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if not entry.filename.endswith(_SUFFIX):
                    raise CalibrationError(
                        f"{path} holds {entry.filename!r}, which is no array: write it by numpy.savez"
                    )
                name = entry.filename.removesuffix(_SUFFIX)
                with archive.open(entry) as stream:
                    arrays[name] = _read_header(path, name, stream)
        return cls(path, arrays)

    def read(self, name: str) -> NDArray[np.generic]:
        """One array.

        Raises:
            CalibrationError: it is damaged.
        """
        with _readable(self.path), np.load(self.path, allow_pickle=False) as archive:
            return np.asarray(archive[name])

    @property
    def sha256(self) -> str:
        """Hash (hex) of the file; reads all of it, a few MB at a time."""
        digest = hashlib.sha256()
        with _readable(self.path), open_regular(self.path) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()


def _read_header(path: Path, name: str, stream: IO[bytes]) -> ArrayHeader:
    is_old = npy.read_magic(stream) == (1, 0)
    read = npy.read_array_header_1_0 if is_old else npy.read_array_header_2_0
    # numpy reads as many bytes as the header says, 4 GB of them, before it looks at how many there are
    length = stream.read(2 if is_old else 4)
    n_header = int.from_bytes(length, "little")
    if n_header > _MAX_HEADER_BYTES:
        raise ValueError(f"the header of array {name[:200]!r} has {n_header:,} bytes, which none needs")
    try:
        shape, _, dtype = read(io.BytesIO(length + stream.read(n_header)))
    except (MemoryError, tokenize.TokenError) as error:  # a header nests too deep to be parsed, or never ends
        raise CalibrationError(f"{path}: the header of array {name!r} is damaged") from error
    if dtype.hasobject:
        raise CalibrationError(
            f"{path}: array {name!r} holds Python objects, which would have to be unpickled: refused"
        )
    return ArrayHeader(name, shape, dtype)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what zipfile and numpy say of a bad file into one error."""
    try:
        yield
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise CalibrationError(f"{path} is no readable .npz archive: {error}") from error
