"""Who runs the stack of a var folder: a lock that dies with its holder, and a file that says where to find it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cli.errors import StackError


@dataclass(frozen=True)
class StackRecord:
    """What ``var/stack.json`` holds while a stack is up."""

    pid: int
    url: str
    redis_url: str
    database_url: str
    #: program name -> process id
    programs: dict[str, int]
    ready: bool

    def save(self, var_dir: Path) -> None:
        temporary = var_dir / "stack.json.new"
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
        temporary.replace(var_dir / "stack.json")


@contextmanager
def stack_lock(var_dir: Path) -> Iterator[None]:
    """Be the only supervisor of this folder. The kernel frees the lock when the process ends, however it ends.

    Raises:
        StackError: another supervisor holds it.
    """
    var_dir.mkdir(parents=True, exist_ok=True)
    with (var_dir / "stack.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            record = read_record(var_dir)
            where = "" if record is None else f": {record.url}, process {record.pid}"
            raise StackError(
                f"the stack of {var_dir} is already running{where}", cure="use it, or stop it with `bitbudget down`"
            ) from None
        try:
            yield
        finally:
            (var_dir / "stack.json").unlink(missing_ok=True)


def running_stack(var_dir: Path) -> StackRecord | None:
    """The stack that runs on this folder now, or None. A file left behind by a killed supervisor does not count."""
    lock = var_dir / "stack.lock"
    if not lock.exists():
        return None
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return read_record(var_dir)
    return None


def read_record(var_dir: Path) -> StackRecord | None:
    """What the file says, true or not; None where it is missing or being replaced by another version's."""
    try:
        return StackRecord(**json.loads((var_dir / "stack.json").read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
