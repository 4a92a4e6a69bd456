"""Start the stack, watch it, stop it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx

from cli.errors import CliError, ExitCode, StackError
from cli.output import short_path
from cli.stack.plan import Plan, make_plan, uses_embedded_redis
from cli.stack.ports import free_port
from cli.stack.program import Program
from cli.stack.record import StackRecord, stack_lock
from cli.stack.redis import answers, socket_path
from results_db.masking import mask_url
from results_db.settings import Settings

#: a program that dies so often within _RESTART_WINDOW_S is not started again
_MOST_RESTARTS = 5
_RESTART_WINDOW_S = 60.0
_READY_WITHIN_S = 90.0

Say = Callable[[str], None]


@dataclass
class Stack:
    """Redis, server and workers of one var folder. ``say`` receives one line for each thing worth telling.

    Use it as a context manager: entering starts everything and returns when the server is ready, leaving stops it.
    Only processes that it started are ever signalled.
    """

    settings: Settings
    say: Say
    #: set it to end the start or ``supervise``
    stop: threading.Event = field(default_factory=threading.Event)
    n_workers: int = 1
    plan: Plan = field(init=False)
    record: StackRecord = field(init=False)
    _held: ExitStack = field(default_factory=ExitStack, init=False)
    _restarts: dict[str, list[float]] = field(default_factory=dict, init=False)

    def __enter__(self) -> Stack:
        with ExitStack() as held:
            held.enter_context(stack_lock(self.settings.var_dir))
            port = free_port(self.settings.host, self.settings.port)
            redis_socket = held.enter_context(socket_path(self.settings.var_dir / "redis.sock"))
            self.plan = make_plan(self.settings, port=port, redis_socket=redis_socket, n_workers=self.n_workers)
            held.callback(self._stop_programs)
            self._save_record(ready=False)
            self._start_redis()
            for program in self.plan.programs:
                if program.name != "redis":
                    self._start(program)
            self._wait_for_server()
            self._save_record(ready=True)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._held.close()

    def supervise(self, *, interval_s: float = 0.5) -> None:
        """Watch the programs until ``stop`` is set; one that dies is named, with its log's tail, and started again.

        Raises:
            StackError: a program keeps dying.
        """
        while not self.stop.wait(interval_s):
            for program in self.plan.programs:
                if not program.alive:
                    self._restart(program)

    def _start_redis(self) -> None:
        if not uses_embedded_redis(self.settings):
            self._wait(lambda: answers(self.plan.redis_url), 10, "the Redis of BITBUDGET_REDIS_URL does not answer")
            return
        program = self.plan.program("redis")
        self._start(program)
        self._wait(lambda: answers(self.plan.redis_url), 20, "the embedded Redis does not answer", watch=(program,))

    def _start(self, program: Program) -> None:
        program.start()
        self.say(f"{program.name} started (process {program.pid}, log {short_path(program.log)})")

    def _wait_for_server(self) -> None:
        ready_url = f"{self.plan.url}/readyz"

        def ready() -> bool:
            try:
                return httpx.get(ready_url, timeout=5, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        self._wait(ready, _READY_WITHIN_S, f"the server is not ready: {ready_url}", watch=self.plan.programs)

    def _wait(
        self, done: Callable[[], bool], within_s: float, failure: str, *, watch: tuple[Program, ...] = ()
    ) -> None:
        """Return when ``done()``; raise when a watched program ends first or the time is up."""
        deadline = time.monotonic() + within_s
        while not done():
            for program in watch:
                if not program.alive:
                    raise StackError(_obituary(program), cure=f"the whole log is {short_path(program.log)}")
            if time.monotonic() > deadline:
                logs = short_path(self.settings.var_dir / "log")
                raise StackError(f"{failure} (waited {within_s:.0f} s)", cure=f"see the logs in {logs}")
            if self.stop.wait(0.05):
                raise CliError("stopped before it was ready", code=ExitCode.INTERRUPTED)

    def _restart(self, program: Program) -> None:
        now = time.monotonic()
        recent = [at for at in self._restarts.get(program.name, []) if now - at < _RESTART_WINDOW_S]
        self.say(_obituary(program))
        if len(recent) >= _MOST_RESTARTS:
            raise StackError(
                f"the {program.name} died {len(recent) + 1} times within {_RESTART_WINDOW_S:.0f} s: giving up",
                cure=f"mend what its log names: {short_path(program.log)}",
            )
        self._restarts[program.name] = [*recent, now]
        program.stop()  # what it had started itself must not stay behind
        self._start(program)
        self._save_record(ready=True)

    def _save_record(self, *, ready: bool) -> None:
        pids = {program.name: program.pid for program in self.plan.programs if program.pid is not None}
        self.record = StackRecord(
            pid=os.getpid(),
            url=self.plan.url,
            redis_url=mask_url(self.plan.redis_url),
            database_url=mask_url(self.settings.database_url),
            programs=pids,
            ready=ready,
        )
        self.record.save(self.settings.var_dir)

    def _stop_programs(self) -> None:
        workers = [program for program in self.plan.programs if program.insist_s is not None]
        for program in workers:  # their experiments end side by side
            program.ask()
        for program in reversed(self.plan.programs):
            program.stop(self.say)


def _obituary(program: Program) -> str:
    tail = program.log_tail()
    return f"the {program.name} {program.ending}" + (f"; its log ends:\n{tail}" if tail else "")
