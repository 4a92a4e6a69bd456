"""The arrows of the house: who may import whom (read from the sources, without importing anything)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

#: room -> rooms that it may import. An import inside a function counts as well.
MAY_IMPORT: dict[str, set[str]] = {
    "compress_core": set(),
    "results_db": set(),
    "migrations": {"results_db"},
    "worker": {"compress_core", "results_db"},
    "server": {"compress_core", "results_db", "web"},
    "web": {"compress_core", "results_db", "server"},
    # the command line talks HTTP; it shares the settings and the views, reads budgets and checks certificates without
    # a server, and starts server and worker as programs
    "cli": {"results_db", "compress_core"},
    "demo": {"compress_core"},
}

#: room -> packages that it must do without
FORBIDDEN: dict[str, set[str]] = {
    "compress_core": {"sqlalchemy", "alembic", "psycopg", "redis", "rq", "fastapi", "starlette", "uvicorn", "httpx"},
    "results_db": {"torch", "transformers", "fastapi", "starlette", "redis", "rq", "httpx"},
    "migrations": {"torch", "transformers", "fastapi", "redis", "rq"},
    "worker": {"fastapi", "starlette", "uvicorn", "jinja2", "altair"},
    "server": {"torch", "transformers"},
    "web": {"torch", "transformers"},
    "cli": {"torch", "transformers", "fastapi", "starlette", "uvicorn", "rq"},
    "demo": {"sqlalchemy", "redis", "rq", "fastapi"},
}

#: rooms of compress_core that must work where torch is not installed: the server computes fits and allocations
TORCH_FREE = (
    *("config", "matrix", "measurement", "errors", "version", "nbytes", "strict_yaml", "hub", "grid"),
    *("fit", "allocate", "analyze", "plan", "text"),
)

#: makes torch impossible to import, as on a machine that does not have it
_NO_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"{name} must not be needed here", name=name)
sys.meta_path.insert(0, NoTorch())
"""


def sources(repo: Path, room: str) -> list[Path]:
    return sorted((repo / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_below_it(repo: Path, room: str) -> None:
    assert sources(repo, room), f"the room {room} is empty"
    allowed = MAY_IMPORT[room] | {room}
    wrong = {
        str(path.relative_to(repo)): sorted(upward)
        for path in sources(repo, room)
        if (upward := (imported(path) & MAY_IMPORT.keys()) - allowed)
    }
    assert not wrong


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_without_the_packages_of_others(repo: Path, room: str) -> None:
    wrong = {
        str(path.relative_to(repo)): sorted(found)
        for path in sources(repo, room)
        if (found := imported(path) & FORBIDDEN[room])
    }
    assert not wrong


def test_relative_imports_do_not_leave_a_room(repo: Path) -> None:
    wrong = [
        f"{path.relative_to(repo)}:{node.lineno}"
        for room in MAY_IMPORT
        for path in sources(repo, room)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level >= len(path.relative_to(repo).parts)
    ]
    assert not wrong


def test_the_server_never_imports_torch(repo: Path) -> None:
    _runs_without_torch(repo, "import server.app")


def test_the_command_line_never_imports_torch(repo: Path) -> None:
    _runs_without_torch(repo, "import cli.main")


def test_fits_and_allocations_need_no_torch(repo: Path) -> None:
    _runs_without_torch(repo, "; ".join(f"import compress_core.{name}" for name in TORCH_FREE))


def _runs_without_torch(repo: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{_NO_TORCH}\n{code}"], cwd=repo, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
