"""What the stack consists of: settings made into command lines."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from cli.credential import TOKEN, TOKEN_FILE
from cli.errors import StackError
from cli.stack.program import Program
from cli.stack.redis import valkey_command
from results_db.loopback import asked_host
from results_db.settings import Settings

#: a device that names one GPU: its number or its UUID
_ONE_GPU = re.compile(r"^(cuda:\d+$|GPU-)")

#: seconds after which a worker that is told to stop is told again, and after which it is killed
INSIST_S, _KILL_S = 30.0, 50.0

#: the checkout: the rooms are imported from here whatever the working directory
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """The programs in the order in which they start; they stop in the opposite order."""

    url: str
    redis_url: str
    #: whether the Redis is ours to start and stop
    embedded_redis: bool
    programs: tuple[Program, ...]

    def program(self, name: str) -> Program:
        return next(program for program in self.programs if program.name == name)


def uses_embedded_redis(settings: Settings) -> bool:
    """True unless BITBUDGET_REDIS_URL names a Redis of the user's own."""
    return settings.redis_url == f"unix://{settings.var_dir / 'redis.sock'}"


def make_plan(settings: Settings, *, port: int, redis_socket: Path, n_workers: int = 1) -> Plan:
    """Command lines and environment of Redis (unless the user has one), server and workers.

    Raises:
        StackError: several workers on a device that is one GPU.
    """
    if n_workers > 1 and _ONE_GPU.match(settings.device):
        raise StackError(
            f"{n_workers} workers cannot share {settings.device}: a GPU belongs to one worker",
            cure='one worker, or BITBUDGET_DEVICE as a name that several GPUs have ("cuda" is any): each takes its own',
        )
    embedded = uses_embedded_redis(settings)
    redis_url = f"unix://{redis_socket}" if embedded else settings.redis_url
    env = _stack_environment(settings, port=port, redis_url=redis_url)
    logs = settings.var_dir / "log"
    programs: list[Program] = []
    if embedded:
        data = settings.var_dir / "redis"
        data.mkdir(parents=True, exist_ok=True)
        programs.append(Program("redis", valkey_command(redis_socket, data), env, logs / "redis.log"))
    # it listens where its settings say; open event streams have five seconds at its end
    server = [sys.executable, "-m", "server"]
    programs.append(Program("server", server, env, logs / "server.log"))
    # a worker that is told to stop finishes the experiment that it is at and gives its job back; told again it does so
    # at once. Killed, it would cost the job one of its attempts
    worker = [sys.executable, "-m", "worker"]
    shared = env | _worker_threads(settings, n_workers)
    for number in range(1, n_workers + 1):
        name = "worker" if number == 1 else f"worker-{number}"
        programs.append(
            Program(
                name,
                worker,
                shared,
                logs / f"{name}.log",
                grace_s=_KILL_S,
                insist_s=INSIST_S,
                finishing="its experiment",
            )
        )
    return Plan(server_url(settings.host, port), redis_url, embedded, tuple(programs))


def server_url(host: str, port: int) -> str:
    """Where a server that listens on this host is asked from this machine."""
    host = asked_host(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _worker_threads(settings: Settings, n_workers: int) -> dict[str, str]:
    """Workers on the CPU share its cores, unless the user has said how many each may use."""
    if settings.device != "cpu" or n_workers == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // n_workers))}


def environment(settings: Settings) -> dict[str, str]:
    """The user's environment for a program of ours.

    Package names such as ``server`` are generic: the working directory is kept off the import path, so that a folder
    of that name in it cannot be taken for ours.
    """
    inherited = os.environ.get("PYTHONPATH")
    return {
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning OpenMP threads starve each other where cores are shared
        "BITBUDGET_HEARTBEAT_S": "2",  # one machine: live progress costs next to nothing
        # the token is the command line's: no program of ours needs it
        **{name: value for name, value in os.environ.items() if name not in (TOKEN, TOKEN_FILE)},
        "PYTHONPATH": os.pathsep.join([str(ROOT), *([inherited] if inherited else [])]),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "BITBUDGET_VAR_DIR": str(settings.var_dir),
        "BITBUDGET_HOST": settings.host,
        "BITBUDGET_PORT": str(settings.port),
    }


def _stack_environment(settings: Settings, *, port: int, redis_url: str) -> dict[str, str]:
    """What the programs of a stack must agree on. The checkout is a model root: the demo's model lies in it."""
    roots = dict.fromkeys([*settings.model_roots, ROOT])
    return environment(settings) | {
        "BITBUDGET_DATABASE_URL": settings.database_url,
        "BITBUDGET_REDIS_URL": redis_url,
        "BITBUDGET_MODEL_ROOTS": os.pathsep.join(str(root) for root in roots),
        "BITBUDGET_PORT": str(port),
    }
