"""docs/faults.md names each fault and the test that shows it: both are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PAGE = REPO / "docs" / "faults.md"
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w*)`")


def functions_of(path: Path) -> set[str]:
    """Names of a module's tests."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def named() -> set[tuple[str, str]]:
    return set(_TEST.findall(PAGE.read_text(encoding="utf-8")))


def test_every_row_names_a_test_that_exists() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| fault ")]
    assert len(rows) > 30
    assert [row for row in rows if not _TEST.search(row)] == []
    assert {f"{path}::{name}" for path, name in named() if name not in functions_of(REPO / path)} == set()


def test_every_fault_that_is_tested_has_a_row() -> None:
    folder = REPO / "tests" / "faults"
    tested = {(str(path.relative_to(REPO)), name) for path in folder.glob("test_*.py") for name in functions_of(path)}
    assert tested - named() == set()
