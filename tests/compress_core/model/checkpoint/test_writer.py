"""The safetensors writer: valid files, padded headers, nothing half written."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress_core.checkpoint.headers import read_header
from compress_core.checkpoint.writer import Entry, SafetensorsWriter, encode_header
from compress_core.errors import PackedFormatError

ENTRIES = [Entry("a", "F32", (2,)), Entry("b", "U8", (3,))]
A, B = torch.tensor([1.0, 2.0]), torch.tensor([7, 8, 9], dtype=torch.uint8)


def test_written_files_are_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.safetensors"
    with SafetensorsWriter(path, ENTRIES, {"k": "v"}, header_bytes=512) as writer:
        writer.write("a", A.numpy().tobytes())
        writer.write("b", bytes([7, 8, 9]))
    loaded = load_file(path)
    assert torch.equal(loaded["a"], A)
    assert torch.equal(loaded["b"], B)
    assert read_header(path).metadata == {"k": "v"}
    assert path.stat().st_size == 8 + 512 + 8 + 3


def test_copy_takes_a_range_of_another_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"??" + A.numpy().tobytes() + bytes([7, 8, 9]))
    with SafetensorsWriter(tmp_path / "x", ENTRIES, {}) as writer:
        writer.copy("a", tmp_path / "source", 2, 8)
        writer.copy("b", tmp_path / "source", 10, 3)
    assert torch.equal(load_file(tmp_path / "x")["b"], B)


def test_a_source_that_ends_too_early(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(10))

    def attempt() -> None:
        with SafetensorsWriter(tmp_path / "x", ENTRIES, {}) as writer:
            writer.copy("a", tmp_path / "source", 0, 8)
            writer.copy("b", tmp_path / "source", 8, 3)

    with pytest.raises(PackedFormatError, match="ended while b"):
        attempt()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("writes", "message"),
    [
        ([("b", 3)], "out of turn; expected a"),
        ([("a", 7)], "has 7 bytes"),
        ([("a", 8), ("b", 3), ("c", 1)], "expected nothing"),
        ([("a", 8)], "1 of 2 tensors"),
    ],
)
def test_a_wrong_sequence_leaves_the_old_file(tmp_path: Path, writes: list[tuple[str, int]], message: str) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def attempt() -> None:
        with SafetensorsWriter(path, ENTRIES, {}) as writer:
            for name, size in writes:
                writer.write(name, bytes(size))

    with pytest.raises(PackedFormatError, match=message):
        attempt()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_header_that_does_not_fit() -> None:
    with pytest.raises(PackedFormatError, match="64 were set aside"):
        encode_header(ENTRIES, {}, header_bytes=64)


@contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    """Writing more fails as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("nbytes", [5_000, 500_000], ids=["when it is closed", "while it is written"])
def test_a_full_disk_leaves_what_was_there_and_no_more(tmp_path: Path, nbytes: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")
    data = bytes(nbytes)
    with (
        files_of_at_most(1000),
        pytest.raises(OSError, match="File too large"),
        SafetensorsWriter(path, [Entry("a", "U8", (nbytes,))], {}) as writer,
    ):
        writer.write("a", data)
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert path.read_bytes() == b"before"
