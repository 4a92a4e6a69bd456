"""One worker a card and machine: two checkouts, other users, and what lies in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.card_lock import CardLock
from worker.errors import DeviceUnavailable

#: a worker of a machine with one card, which owns it until its input ends
WORKER = """
import sys
from pathlib import Path
import worker.device, worker.main
worker.device.list_gpus = lambda: [worker.device.Gpu(0, "GPU-aaaa-1", "NVIDIA GeForce RTX 3090", ())]
worker.main.MACHINE_LOCKS = Path(sys.argv[1])
worker.main._work = lambda *_, **__: (print("owns it", flush=True), sys.stdin.read())
sys.exit(worker.main.main([]))
"""


def start(machine: Path, var_dir: Path, repo: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(machine)],
        env=os.environ | {"BITBUDGET_VAR_DIR": str(var_dir), "BITBUDGET_DEVICE": "cuda", "PYTHONPATH": str(repo)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_checkouts_do_not_share_a_card(tmp_path: Path, repo: Path) -> None:
    machine = tmp_path / "machine"
    with start(machine, tmp_path / "one", repo) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "owns it\n"
        with start(machine, tmp_path / "two", repo) as second:
            out, told = second.communicate(timeout=60)
        assert (second.returncode, out) == (2, "")
        assert (
            f"belongs to another worker: cuda:0 = NVIDIA GeForce RTX 3090 (GPU-aaaa-1): locked by pid {first.pid}"
            in told
        )
        first.communicate(timeout=60)
    assert first.returncode == 0
    with start(machine, tmp_path / "two", repo) as third:
        assert third.communicate(timeout=60)[0] == "owns it\n"


def test_two_containers_that_share_a_folder_do_not_share_a_card(tmp_path: Path) -> None:
    """Each has a temporary folder of its own."""
    with CardLock("GPU-1", [tmp_path / "a", tmp_path / "var"]) as lock:
        assert lock.take()
        other = CardLock("GPU-1", [tmp_path / "b", tmp_path / "var"])
        assert not other.take()
        assert other.owner == f"locked by pid {os.getpid()}"
        # and it holds nothing half
        with CardLock("GPU-1", [tmp_path / "b"]) as third:
            assert third.take()
        with CardLock("GPU-2", [tmp_path / "a", tmp_path / "var"]) as card:
            assert card.take()


def test_any_user_may_lock_it_later(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with CardLock("GPU-1", [tmp_path]) as lock:
            assert lock.take()
            assert lock.paths[0].stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


def test_what_is_no_lock_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    path = tmp_path / "bitbudget-GPU-1.lock"
    for lay in (
        lambda: path.symlink_to(theirs),
        lambda: path.symlink_to(tmp_path / "nowhere"),
        lambda: path.hardlink_to(theirs),
        lambda: os.mkfifo(path),
    ):
        lay()
        with pytest.raises(DeviceUnavailable, match="remove it"):
            CardLock("GPU-1", [tmp_path]).take()
        path.unlink()
    assert theirs.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_words_in_a_lock_file_are_not_repeated(tmp_path: Path) -> None:
    with CardLock("GPU-1", [tmp_path]) as lock:
        assert lock.take()
        lock.paths[0].write_text("\x1b]0;hello\x07")
        other = CardLock("GPU-1", [tmp_path])
        assert not other.take()
        assert other.owner == "locked by pid unknown"
