"""docs/security.md promises nothing without a test that attacks it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from results_db.tokens import Scope

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| `(tests/\S+\.py)::(\w+)` \|$", TEXT, re.MULTILINE)


def test_every_promise_names_a_test() -> None:
    table = TEXT.partition("## What is promised")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(lines) == len(ROWS) >= 40


@pytest.mark.parametrize(("path", "name"), [row[1:] for row in ROWS], ids=[row[2] for row in ROWS])
def test_the_test_of_a_promise_exists(path: str, name: str) -> None:
    tree = ast.parse((REPO / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("scope", Scope)
def test_every_scope_is_explained(scope: Scope) -> None:
    assert f"\n| `{scope}` | " in TEXT
