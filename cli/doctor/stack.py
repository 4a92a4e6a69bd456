"""The stack of the var folder: what its record says, and what is true."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx

from cli.doctor.finding import Finding, fail, ok, warn
from cli.stack.record import read_record, running_stack
from results_db.gc.collect import leftover_folders
from results_db.gc.work import leftovers
from results_db.settings import Settings

_TIMEOUT_S = 10.0
_AN_HOUR = 1 / 24


def look_at_stack(settings: Settings) -> Iterator[Finding]:
    """Supervisor, programs, the server's own readiness, and what killed moves left."""
    record = running_stack(settings.var_dir)
    if record is not None:
        dead = [f"{name} (process {pid})" for name, pid in record.programs.items() if not alive(pid)]
        if dead:
            yield warn(
                "stack", f"{', '.join(dead)} of {record.url} is gone", "the supervisor starts it again; see var/log"
            )
        else:
            yield ok("stack", f"{record.url}, {len(record.programs)} programs, supervisor {record.pid}")
        yield _ask_server(record.url)
    elif (stale := read_record(settings.var_dir)) is not None:
        running = [f"{name} (process {pid})" for name, pid in stale.programs.items() if alive(pid)]
        detail = f"a supervisor (process {stale.pid}) was killed and left its record"
        if running:
            still = f"{detail}; of its programs still run {', '.join(running)}"
            yield warn("stack", still, "see what they are, end them")
        else:
            yield warn("stack", detail, "the next `bitbudget up` replaces it; nothing else is needed")
    else:
        yield ok("stack", f"none of {settings.var_dir} runs")
    items = list(leftovers(leftover_folders(settings), _AN_HOUR))
    if items:
        found = f"{len(items)} of killed moves, such as {items[0].name}"
        yield warn("leftovers", found, "bitbudget gc --yes, after a day")


def alive(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _ask_server(url: str) -> Finding:
    try:
        answer = httpx.get(f"{url}/readyz", timeout=_TIMEOUT_S, trust_env=False)
        checks = answer.json()["checks"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return fail("server", f"{url} does not answer: {type(error).__name__}", "see var/log/server.log")
    wanting = {name: check.get("detail", "not ready") for name, check in checks.items() if not check["ok"]}
    if wanting:
        told = "; ".join(f"{name}: {detail}" for name, detail in wanting.items())
        return fail("server", f"not ready: {told}", "see var/log/server.log")
    return ok("server", f"{url} is ready")
