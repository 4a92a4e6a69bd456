"""What a process leaves behind when Python does not live to tell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from worker.crash import forget_old, last_words

#: a job that notes where it is, and then goes on as told
_JOB = """
import faulthandler, resource, signal, sys
from pathlib import Path
from worker.crash import LastWords

def here(act):
    with LastWords(Path(sys.argv[1]), "att_1") as words:
        words.note()
        if act == "segfault":
            faulthandler._sigsegv()
        if act == "kill":
            signal.raise_signal(signal.SIGKILL)
        if act == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
            words.note()

here(sys.argv[2])
"""


def run(folder: Path, repo: Path, act: str) -> int:
    """The exit code of such a job; negative: the signal."""
    return subprocess.run(
        [sys.executable, "-c", _JOB, str(folder), act], cwd=repo, stdout=subprocess.DEVNULL, timeout=60, check=False
    ).returncode


def test_what_is_left_of_each_end(tmp_path: Path, repo: Path) -> None:
    assert run(tmp_path, repo, "segfault") == -signal.SIGSEGV
    words = last_words(tmp_path, "att_1")
    assert words is not None
    assert words.startswith("Fatal Python error")
    assert "in here" in words
    assert last_words(tmp_path, "att_1") is None, "they are told once"
    assert run(tmp_path, repo, "kill") == -signal.SIGKILL
    noted = last_words(tmp_path, "att_1")
    assert noted is not None
    assert noted.startswith("At its last heartbeat")
    assert "in note" in noted
    assert run(tmp_path, repo, "nothing") == 0
    assert last_words(tmp_path, "att_1") is None


def test_a_full_disk_costs_the_words_and_not_the_job(tmp_path: Path, repo: Path) -> None:
    assert run(tmp_path, repo, "full") == 0


def test_old_ones_go(tmp_path: Path) -> None:
    folder = tmp_path / "crashes"
    folder.mkdir()
    for name in ("old", "new"):
        (folder / f"{name}.txt").touch()
    os.utime(folder / "old.txt", (0, 0))
    forget_old(tmp_path, days=14)
    assert [path.name for path in folder.iterdir()] == ["new.txt"]
