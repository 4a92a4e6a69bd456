"""Room and permission where things are written."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cli.doctor.finding import Finding, fail, ok, warn
from cli.output import nbytes
from results_db.disk import existing, free_bytes
from results_db.packages import installed
from results_db.settings import Settings

#: bytes: below the first a packed model of a few GB no longer fits, below the second nothing does
_LITTLE, _NOTHING = 5 * 10**9, 2 * 10**8
#: seconds that a small write may take to reach the disk: each commit waits for one
_SLOW_S = 0.1


def look_at_disks(settings: Settings) -> Iterator[Finding]:
    """The var folder, the artefacts, and where models of the hub are kept."""
    yield _room("var folder", settings.var_dir, needed=True)
    if existing(settings.var_dir) == settings.var_dir and os.access(settings.var_dir, os.W_OK):
        yield _speed(settings.var_dir)
    if "://" in settings.artefacts_url:
        yield ok("artefacts", f"in the store {settings.artefacts_url}; a worker tries it when it starts")
    else:
        yield _room("artefacts", Path(settings.artefacts_url), needed=True)
    if installed("huggingface-hub"):
        from compress_core.checkpoint.resolve import hub_cache  # brings numpy along

        yield _room("model cache", hub_cache(), needed=False)


def _room(about: str, path: Path, *, needed: bool) -> Finding:
    there = existing(path)
    if needed and not os.access(there, os.W_OK | os.X_OK):
        return fail(about, f"{there} is not writable by this user", "change its owner, or set BITBUDGET_VAR_DIR")
    free = free_bytes(path)
    detail = f"{path}: {nbytes(free)} free"
    if free < _NOTHING:
        return fail(about, detail, "make room: bitbudget gc --yes removes what is of no more use")
    if free < _LITTLE:
        return warn(about, detail, "make room: bitbudget gc shows what is of no more use")
    return ok(about, detail)


def _speed(folder: Path) -> Finding:
    seconds = statistics.median(_write_once(folder) for _ in range(3))
    detail = f"a small write is on the disk after {seconds * 1000:.1f} ms"
    if seconds > _SLOW_S:
        return warn("disk speed", detail, "a slow or busy disk: keep BITBUDGET_VAR_DIR on a local one")
    return ok("disk speed", detail)


def _write_once(folder: Path) -> float:
    with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=folder) as file:
        began = time.perf_counter()
        file.write(b"x" * 4096)
        file.flush()
        os.fsync(file.fileno())
        return time.perf_counter() - began
