"""The embedded stack: a real Valkey, the real server, a real worker, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from cli.errors import StackError
from cli.stack.plan import Plan, make_plan
from cli.stack.program import Program
from cli.stack.record import running_stack
from cli.stack.stack import Stack
from results_db.settings import Settings


@pytest.mark.slow
@pytest.mark.xdist_group("stack")
def test_up_serves(stack) -> None:
    assert set(stack.record.programs) == {"redis", "server", "worker"}
    assert httpx.get(f"{stack.record.url}/readyz").status_code == 200


@pytest.mark.slow
@pytest.mark.xdist_group("stack")
def test_a_second_up_says_where_the_first_one_is(stack, start_cli: Callable[..., subprocess.Popen[str]]) -> None:
    second = start_cli("up", folder=stack.folder)
    _, told = second.communicate(timeout=90)
    assert second.returncode == 5
    assert f"already running: {stack.record.url}, process {stack.process.pid}" in told


@pytest.mark.quick_fault
@pytest.mark.slow
@pytest.mark.xdist_group("stack")
def test_a_killed_worker_is_started_again(stack, until: Callable[..., None]) -> None:
    before = stack.record.programs
    os.kill(before["worker"], signal.SIGKILL)
    until(lambda: stack.record.programs["worker"] != before["worker"])
    assert {name: pid for name, pid in stack.record.programs.items() if name != "worker"} == {
        name: pid for name, pid in before.items() if name != "worker"
    }


@pytest.mark.slow
@pytest.mark.xdist_group("stack")
def test_down_stops_everything(
    start_stack: Callable[..., object],
    start_cli: Callable[..., subprocess.Popen[str]],
    gone: Callable[[int], bool],
    short_dir: Path,
) -> None:
    folder = short_dir / "down"
    folder.mkdir()
    running = start_stack(folder)
    record = running.record
    answer, _ = start_cli("down", "--json", folder=folder).communicate(timeout=90)
    assert json.loads(answer) == {"stopped": True, "url": record.url}
    _, told = running.process.communicate(timeout=90)
    assert running.process.returncode == 0
    assert f"page      {record.url}/" in told
    assert told.splitlines()[-1] == "stopped"
    assert all(gone(pid) for pid in record.programs.values())
    assert running_stack(running.var_dir) is None
    assert not (running.var_dir / "redis.sock").exists()


@pytest.mark.quick_fault
@pytest.mark.slow
@pytest.mark.xdist_group("stack")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_nothing_outlives_a_killed_supervisor(
    start_stack: Callable[..., object], until: Callable[..., None], gone: Callable[[int], bool], tmp_path: Path
) -> None:
    # pytest's folders have long names: Redis then lives in a short private one
    running = start_stack(tmp_path)
    record = running.record
    running.process.kill()
    running.process.communicate()
    until(lambda: all(gone(pid) for pid in record.programs.values()))


@pytest.mark.slow
@pytest.mark.xdist_group("stack")
def test_a_program_that_cannot_start_is_named_with_its_last_words(
    tmp_path: Path, start_cli: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start_cli("up", folder=tmp_path, BITBUDGET_DEVICE="no such GPU")
    _, told = process.communicate(timeout=120)
    assert process.returncode == 5
    assert "the worker ended with exit code 2" in told
    assert "no such GPU" in told
    assert "Traceback" not in told


def test_a_program_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    said: list[str] = []
    stack = Stack(Settings(var_dir=tmp_path), said.append)
    code = "print('my last words'); raise SystemExit(7)"
    program = Program("worker", [sys.executable, "-c", code], os.environ, tmp_path / "log" / "worker.log")
    stack.plan = Plan("http://x", "unix:///x", True, (program,))
    program.start()
    with pytest.raises(StackError, match="died 6 times"):
        stack.supervise(interval_s=0.01)
    assert said[0] == "the worker ended with exit code 7; its log ends:\nmy last words"


def test_stop_ends_the_watch(tmp_path: Path) -> None:
    stack = Stack(Settings(var_dir=tmp_path), print, threading.Event())
    stack.stop.set()
    stack.supervise()


def test_a_redis_of_ones_own_is_used(tmp_path: Path) -> None:
    settings = Settings(var_dir=tmp_path, redis_url="redis://elsewhere:6379/0")
    plan = make_plan(settings, port=1, redis_socket=tmp_path / "redis.sock")
    assert [program.name for program in plan.programs] == ["server", "worker"]
    assert plan.programs[0].env["BITBUDGET_REDIS_URL"] == "redis://elsewhere:6379/0"


def test_the_programs_agree_on_their_settings_and_leave_a_core_to_others(tmp_path: Path) -> None:
    plan = make_plan(Settings(var_dir=tmp_path, host="::1"), port=8765, redis_socket=tmp_path / "redis.sock")
    assert plan.url == "http://[::1]:8765"
    for program in plan.programs:
        assert program.env["BITBUDGET_VAR_DIR"] == str(tmp_path)
        assert program.env["BITBUDGET_PORT"] == "8765"
        assert program.env["OMP_WAIT_POLICY"] == os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        assert program.env["PYTHONSAFEPATH"] == "1"


def test_several_workers_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    plan = make_plan(Settings(var_dir=tmp_path), port=1, redis_socket=tmp_path / "redis.sock", n_workers=3)
    workers = [program for program in plan.programs if program.name.startswith("worker")]
    assert [worker.name for worker in workers] == ["worker", "worker-2", "worker-3"]
    assert len({worker.log for worker in workers}) == 3
    assert {worker.env["OMP_NUM_THREADS"] for worker in workers} == {"2"}
    assert "OMP_NUM_THREADS" not in plan.program("server").env


@pytest.mark.parametrize("device", ["cuda:0", "GPU-1f2e"])
def test_several_workers_on_one_gpu_are_refused(tmp_path: Path, device: str) -> None:
    settings = Settings(var_dir=tmp_path, device=device)
    with pytest.raises(StackError, match=f"2 workers cannot share {device}"):
        make_plan(settings, port=1, redis_socket=tmp_path / "redis.sock", n_workers=2)


def test_the_record_holds_no_password(tmp_path: Path) -> None:
    stack = Stack(Settings(var_dir=tmp_path, redis_url="redis://:hunter2@elsewhere:6379/0"), print, threading.Event())
    stack.plan = make_plan(stack.settings, port=1, redis_socket=tmp_path / "redis.sock")
    stack._save_record(ready=False)
    assert "redis://:***@elsewhere" in (tmp_path / "stack.json").read_text()
    assert "hunter2" not in (tmp_path / "stack.json").read_text()
