"""Headers of safetensors files: what is read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress_core.checkpoint.headers import read_header
from compress_core.errors import CheckpointError

GOOD = {"a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}}


def test_reads_shape_place_and_metadata(tmp_path: Path, write_safetensors: Callable[..., None]) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"__metadata__": {"format": "pt"}, **GOOD}, bytes(12))
    header = read_header(path)
    tensor = header.tensors["a"]
    assert header.metadata == {"format": "pt"}
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("F16", (2, 3), 12)
    assert tensor.begin == 8 + header.header_bytes
    assert tensor.begin + tensor.nbytes == path.stat().st_size


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (GOOD, bytes(11), r"truncated: its header promises \d+ bytes, the file has \d+"),
        (GOOD, bytes(13), r"corrupt: its header promises"),
        (b"[1, 2]", b"", "does not begin with"),
        (b'{"a": ', b"", "not valid JSON"),
        (b'{"a": 1}', b"", "malformed"),
        (b'{"a": {"dtype": "F16"}}', b"", "malformed"),
        (
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            bytes(1),
            "twice",
        ),
        ({"a": {"dtype": "Q3", "shape": [1], "data_offsets": [0, 1]}}, bytes(1), "unknown dtype 'Q3'"),
        ({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, -1]}}, b"", "non-negative"),
        ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, bytes(1), "non-negative"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4), "takes 8 bytes"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, bytes(2), "begins at byte"),
        ({"__metadata__": {"a": 1}}, b"", "strings to strings"),
    ],
)
def test_refuses(
    tmp_path: Path, write_safetensors: Callable[..., None], header: Any, data: bytes, message: str
) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, header, data)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_refuses_a_header_longer_than_the_file(tmp_path: Path, write_safetensors: Callable[..., None]) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, GOOD, b"", promised=5000)
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)
    write_safetensors(path, GOOD, b"", promised=2**60)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_header(path)
    path.write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="3 bytes"):
        read_header(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        read_header(tmp_path / "nothing.safetensors")
