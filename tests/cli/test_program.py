"""Programs of the stack: start, end, and the death of their supervisor."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.errors import StackError
from cli.stack.plan import ROOT
from cli.stack.ports import free_port
from cli.stack.program import Program
from cli.stack.record import StackRecord, read_record, running_stack, stack_lock
from cli.stack.redis import socket_path

STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)
INSISTED = (
    "import signal, time; told = []; signal.signal(signal.SIGTERM, lambda *_: told.append(1))\n"
    "print('up', flush=True)\n"
    "while len(told) < 2: time.sleep(0.01)"
)
FAMILY = (
    "import subprocess, time; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); time.sleep(60)"
)


@pytest.fixture
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Program]:
    def make(code: str, **options: float) -> Program:
        made = Program("child", [sys.executable, "-c", code], os.environ, tmp_path / "log" / "child.log", **options)
        request.addfinalizer(made.stop)
        return made

    return make


def test_it_logs_and_tells_how_it_ended(program: Callable[..., Program], until: Callable[..., None]) -> None:
    child = program("import sys; print('first'); print('last words', file=sys.stderr); sys.exit(3)")
    assert child.ending == "was not started"
    child.start()
    until(lambda: not child.alive)
    assert child.ending == "ended with exit code 3"
    assert child.log_tail(1) == "last words" or child.log_tail(1) == "first"
    assert "last words" in child.log_tail()


def test_a_program_that_ignores_sigterm_is_killed(program: Callable[..., Program], until: Callable[..., None]) -> None:
    child = program(STUBBORN, grace_s=0.3)
    child.start()
    until(lambda: "up" in child.log_tail())
    child.stop()
    assert child.ending == "was killed by SIGKILL"


def test_a_worker_is_told_again_before_it_is_killed(
    program: Callable[..., Program], until: Callable[..., None]
) -> None:
    """The second SIGTERM ends it in order; what is waited for is said."""
    child = program(INSISTED, grace_s=60.0, insist_s=1.2, finishing="its experiment")
    child.start()
    until(lambda: "up" in child.log_tail())
    said: list[str] = []
    child.ask()
    child.stop(said.append)
    assert child.ending == "ended with exit code 0"
    assert said == [
        "waiting for the child, which finishes its experiment: 1 s at most",
        "the child is told again: what it is at is given back unfinished",
    ]


def test_what_it_started_itself_goes_with_it(
    program: Callable[..., Program], until: Callable[..., None], gone: Callable[[int], bool]
) -> None:
    child = program(FAMILY)
    child.start()
    until(lambda: child.log_tail().strip().isdigit())
    grandchild = int(child.log_tail())
    child.stop()
    until(lambda: gone(grandchild))


def test_stop_twice_and_stop_before_start_are_harmless(program: Callable[..., Program]) -> None:
    child = program("pass")
    child.stop()
    child.start()
    child.stop()
    child.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_it_dies_with_its_supervisor(tmp_path: Path, until: Callable[..., None], gone: Callable[[int], bool]) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from cli.stack.program import Program\n"
        "child = Program('child', ['sleep', '60'], os.environ, Path('child.log')); child.start()\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    until(lambda: gone(child))


def test_a_busy_port_is_named_with_its_cure() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            free_port("127.0.0.1", port)
    assert "--port" in str(caught.value.cure)
    assert free_port("127.0.0.1", 0) > 0


def test_a_host_that_is_not_ours_is_named() -> None:
    with pytest.raises(StackError, match=r"cannot listen on 192\.0\.2\.1"):
        free_port("192.0.2.1", 0)


def test_one_supervisor_a_folder(tmp_path: Path) -> None:
    record = StackRecord(4711, "http://127.0.0.1:1", "unix:///s", "sqlite:///d", {"redis": 4712}, ready=True)
    assert running_stack(tmp_path) is None
    with stack_lock(tmp_path):
        assert running_stack(tmp_path) is None
        record.save(tmp_path)
        assert running_stack(tmp_path) == record
        with pytest.raises(StackError, match=r"already running: http://127\.0\.0\.1:1"), stack_lock(tmp_path):
            pass
        assert running_stack(tmp_path) == record
    assert running_stack(tmp_path) is None


def test_a_record_left_behind_by_a_killed_supervisor_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "stack.lock").touch()
    StackRecord(1, "http://x", "", "", {}, ready=True).save(tmp_path)
    assert running_stack(tmp_path) is None
    assert read_record(tmp_path) is not None
    (tmp_path / "stack.json").write_text("{")
    assert read_record(tmp_path) is None


def test_a_socket_path_that_the_kernel_would_cut_is_replaced(tmp_path: Path) -> None:
    with socket_path(Path("/short/redis.sock")) as path:
        assert path == Path("/short/redis.sock")
    with socket_path(tmp_path / ("deep/" * 30) / "redis.sock") as path:
        assert len(str(path)) < 100
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()
