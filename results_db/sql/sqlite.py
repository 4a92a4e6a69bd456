"""Queries on SQLite: each in a process of its own, so that nothing in it can outlive its time or its memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from results_db.cells import plain
from results_db.sql.result import LIST_VIEWS, Limits, QueryRefused, Reach, Refusal, Result
from results_db.sql.stop import Stop

_CHILD = Path(__file__).with_name("sqlite_child.py")
#: beyond the query's own seconds; the child's alarm comes long before
_PATIENCE_S = 10.0


def query_sqlite(
    path: Path, sql: str, params: Mapping[str, Any], limits: Limits, reach: Reach, views: Collection[str], stop: Stop
) -> Result:
    """Run one SELECT.

    Raises:
        QueryRefused: see the message.
    """
    if not path.is_file():
        raise QueryRefused(
            Refusal.UNAVAILABLE,
            f"there is no database at {path}",
            cure="start the stack once with `bitbudget up`, or name one: --database URL",
        )
    request = {
        "path": str(path.resolve()),
        "sql": sql,
        "params": dict(params),
        "reach": reach.value,
        "views": sorted(views),
        "rows": limits.rows,
        "nbytes": limits.nbytes,
        "seconds": limits.seconds,
    }
    start = time.monotonic()
    lines = _run(json.dumps(request), limits, stop)
    end = json.loads(lines[-1])
    if "refused" in end:
        raise _refused(Refusal(end["refused"]), end["message"], limits)
    columns = tuple(json.loads(lines[0]))
    rows = [plain(json.loads(line)) for line in lines[1:-1]]
    return Result(columns, rows, end["end"], time.monotonic() - start)


def _run(request: str, limits: Limits, stop: Stop) -> list[str]:
    """What the child wrote, in lines."""
    # -I -S: nothing of the environment or of site-packages is looked at, and it starts in a few milliseconds
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    with child, stop.ends_by(child.kill):
        try:
            out, complaint = child.communicate(request, timeout=limits.seconds + _PATIENCE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise _refused(Refusal.TIMEOUT, "", limits) from None
    if stop.requested:
        raise QueryRefused(Refusal.STOPPED, "the query was stopped")
    if child.returncode < 0:  # the kernel ended it
        raise _refused(Refusal.TIMEOUT, "", limits)
    if child.returncode != 0:
        raise QueryRefused(Refusal.UNAVAILABLE, f"the query's process failed: {complaint.strip()[-300:]}")
    # not splitlines(): texts may hold what Unicode takes for the end of a line
    return out.removesuffix("\n").split("\n")


def _refused(why: Refusal, message: str, limits: Limits) -> QueryRefused:
    match why:
        case Refusal.TIMEOUT:
            return QueryRefused(why, f"the query took longer than {limits.seconds:g} s", cure="ask for less")
        case Refusal.NOT_ALLOWED:
            return QueryRefused(why, message, cure="write one SELECT on the views; changes go through the API")
        case Refusal.TOO_LARGE:
            return QueryRefused(why, message, cure="ask for less")
    return QueryRefused(why, f"the query is not valid: {message}", cure=LIST_VIEWS)
