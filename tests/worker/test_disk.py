"""What counts as a full disk, and what is said of it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from worker import files
from worker.disk import is_disk_full, naming_full_disks
from worker.errors import DiskFull
from worker.files import move_folder


class LibraryError(Exception):
    """Keeps the system's text and not its number."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (LibraryError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("no space"), False),
        (OperationalError("INSERT", {}, Exception("No space left on device")), False),
    ],
)
def test_what_is_a_full_disk(error: Exception, expected: bool) -> None:
    assert is_disk_full(error) is expected


def test_a_cause_counts() -> None:
    error = RuntimeError("the layer could not be written")
    assert not is_disk_full(error)
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_disk_full(error)


def test_path_and_cure_are_named(tmp_path: Path) -> None:
    with (
        pytest.raises(
            DiskFull, match=r"no space left at /x/layer.safetensors \(.* bytes left\): free some space"
        ) as info,
        naming_full_disks([tmp_path, tmp_path / "not yet there"]),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", "/x/layer.safetensors")
    assert str(tmp_path) in str(info.value)
    assert (info.value.code, info.value.retryable) == ("disk-full", False)


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other"), naming_full_disks([tmp_path]):
        raise ValueError("other")


def test_a_copy_that_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "work", tmp_path / "store" / "cal_1"
    (source / "inner").mkdir(parents=True)
    (source / "a").write_bytes(b"first")
    (source / "inner" / "b").write_bytes(b"second")
    copy = shutil.copy2

    def elsewhere(_self: Path, _target: Path) -> Path:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def fits_once(one: Path, other: Path) -> None:
        if one.name == "b":
            raise OSError(errno.ENOSPC, "No space left on device", str(other))
        copy(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", elsewhere)
        patch.setattr(files.shutil, "copy2", fits_once)
        with pytest.raises(OSError, match="No space left"):
            move_folder(source, target)
    assert list((tmp_path / "store").iterdir()) == []
    assert (source / "inner" / "b").read_bytes() == b"second"
