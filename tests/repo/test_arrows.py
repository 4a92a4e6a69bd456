"""The arrows of the house: who may import whom, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sources import imports, nodes

# who reads all sources does it in one process, which parses them once
pytestmark = pytest.mark.xdist_group("sources")

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

#: makes torch impossible to import, as on a machine that does not have it; nobody may even try
_NO_TORCH = """
import sys
tried = []
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            tried.append(name)
            raise ModuleNotFoundError(f"{name} must not be needed here", name=name)
sys.meta_path.insert(0, NoTorch())
"""


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    assert imports(room), f"the room {room} is empty"
    upward = {
        path: sorted((names & MAY_IMPORT.keys()) - MAY_IMPORT[room] - {room}) for path, names in imports(room).items()
    }
    assert {path: names for path, names in upward.items() if names} == {}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_without_the_packages_of_others(room: str) -> None:
    found = {path: sorted(names & FORBIDDEN[room]) for path, names in imports(room).items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_relative_imports_do_not_leave_a_room() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for room in MAY_IMPORT
        for path, node in nodes(room)
        if isinstance(node, ast.ImportFrom) and node.level >= len(Path(path).parts)
    ]
    assert not wrong


def test_server_command_line_fits_and_allocations_do_without_torch(repo: Path) -> None:
    """One process for all of them: whatever it has imported, it has imported without torch."""
    paths = [path for name in TORCH_FREE for path in sorted(repo.glob(f"compress_core/{name}/*.py"))]
    inside = (f"compress_core.{path.parent.name}.{path.stem}" for path in paths if path.stem != "__init__")
    modules = ("server.app", "cli.main", *(f"compress_core.{name}" for name in TORCH_FREE), *inside)
    code = "\n".join([_NO_TORCH, *(f"import {module}; assert not tried, {module!r}" for module in modules)])
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
