"""The server as people run it: a process with its loop, on a port that it keeps when it is started again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from cli.stack.ports import free_port

PATIENCE_S = 90.0


class ServerProcess:
    """Start, kill and start again."""

    def __init__(self, repo: Path, environment: Mapping[str, str], log: Path) -> None:
        self.port = free_port("127.0.0.1", 0)
        self.repo = repo
        self.environment = dict(environment) | {"BITBUDGET_PORT": str(self.port)}
        self.log = log
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server"], cwd=self.repo, env=self.environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"the server ended before it was live\n{self.log.read_text()[-6000:]}"
            try:
                assert self.client.get("/livez").status_code == 200
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"the server does not answer\n{self.log.read_text()[-6000:]}")

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self.kill()
        self.client.close()

    def get(self, path: str) -> Any:
        answer = self.client.get(f"/api/v1{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What a POST made; it must have been accepted."""
        answer = self.client.post(f"/api/v1{path}", json=body)
        assert answer.status_code in (200, 201, 202), answer.text
        return answer.json()
