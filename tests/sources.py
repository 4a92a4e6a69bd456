"""The sources as syntax trees, for tests that read them: each file is parsed once a process."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


@cache
def parsed(room: str) -> dict[str, ast.Module]:
    """Path, as told from the checkout, -> tree of every file of a room."""
    paths = sorted((REPO / room).rglob("*.py"))
    return {str(path.relative_to(REPO)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


@cache
def nodes(room: str) -> tuple[tuple[str, ast.AST], ...]:
    """(path, node) of all that a room's files are made of."""
    return tuple((path, node) for path, tree in parsed(room).items() for node in ast.walk(tree))


@cache
def imports(room: str) -> dict[str, set[str]]:
    """Path -> top-level names of everything that the file imports, inside functions as well."""
    found: dict[str, set[str]] = {path: set() for path in parsed(room)}
    for path, node in nodes(room):
        if isinstance(node, ast.Import):
            found[path] |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found[path].add(node.module.partition(".")[0])
    return found
