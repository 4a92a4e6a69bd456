"""A stack in a process of its own: `up` in the background, found again through ``var/stack.json``."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cli.errors import StackError
from cli.stack.plan import INSIST_S, environment
from cli.stack.program import Program
from cli.stack.record import StackRecord, running_stack
from results_db.settings import Settings

_READY_WITHIN_S = 120.0
#: worker, server and Redis each have their own grace time; this covers all
_STOPPED_WITHIN_S = 90.0
#: after so long it is said what is waited for
_PROMPT_S = 1.0


def start_background(settings: Settings, *, outlives_us: bool) -> tuple[Program, StackRecord]:
    """Start `bitbudget up` in the background and return when the server is ready.

    Raises:
        StackError: it ended before it was ready; the message is its own last words.
    """
    log = settings.var_dir / "log" / "stack.log"
    log.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "cli", "up"]
    program = Program(
        "stack", argv, environment(settings), log, grace_s=_STOPPED_WITHIN_S, dies_with_us=not outlives_us
    )
    program.start()
    try:
        return program, _wait_until_ready(program, settings.var_dir)
    except BaseException:
        program.stop()
        raise


def stop_background(var_dir: Path, say: Callable[[str], None] | None = None) -> StackRecord | None:
    """Stop the stack of this folder, if one runs, and return what it was.

    Args:
        say: told what is waited for, where it takes longer than a moment.

    Raises:
        StackError: it did not stop in time.
    """
    record = running_stack(var_dir)
    if record is None:
        return None
    os.kill(record.pid, signal.SIGTERM)
    asked = time.monotonic()
    while running_stack(var_dir) is not None:
        waited_s = time.monotonic() - asked
        if say is not None and waited_s > _PROMPT_S:
            say(
                f"waiting for {record.url}: its worker finishes its experiment, or gives it back after {INSIST_S:.0f} s"
            )
            say = None
        if waited_s > _STOPPED_WITHIN_S:
            raise StackError(
                f"process {record.pid} did not stop within {_STOPPED_WITHIN_S:.0f} s",
                cure=f"see {var_dir / 'log'}; `kill -9 {record.pid}` ends it and its programs",
            )
        time.sleep(0.05)
    return record


def _wait_until_ready(program: Program, var_dir: Path) -> StackRecord:
    deadline = time.monotonic() + _READY_WITHIN_S
    while True:
        alive = program.alive  # looked at before the record: what dies between the two is seen the next time round
        record = running_stack(var_dir)
        if record is not None and record.pid == program.pid and record.ready:
            return record
        if not alive:
            raise StackError(f"the stack did not start:\n{program.log_tail(40)}")
        if time.monotonic() > deadline:
            raise StackError(f"the stack was not ready within {_READY_WITHIN_S:.0f} s", cure=f"see {program.log}")
        time.sleep(0.05)
