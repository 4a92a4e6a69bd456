"""Helpers of the command line's tests: run a command in this process and see what a user would see."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.main import app
from cli.stack.plan import environment
from results_db.settings import Settings


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def bitbudget(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """Run ``bitbudget …`` in an empty working directory with a var folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("BITBUDGET_SERVER", "BITBUDGET_DATABASE_URL", "BITBUDGET_REDIS_URL", "KEEP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BITBUDGET_VAR_DIR", str(tmp_path / "var"))
    # nothing listens on the discard port: a test that forgets its server fails at once
    monkeypatch.setenv("BITBUDGET_PORT", "9")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["bitbudget", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            app(prog_name="bitbudget")
        captured = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def start_cli() -> Callable[..., subprocess.Popen[str]]:
    """Start ``python -m cli …`` as a process of its own, in a folder of its own."""

    def start(*arguments: str, var_dir: Path, **extra: str) -> subprocess.Popen[str]:
        env = environment(Settings(var_dir=var_dir, port=0)) | extra
        return subprocess.Popen(
            [sys.executable, "-m", "cli", *arguments],
            cwd=var_dir.parent,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
