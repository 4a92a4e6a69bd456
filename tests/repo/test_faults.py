"""docs/faults.md names each fault and the test that shows it: both are there, and `make faults` runs them."""

from __future__ import annotations

import ast
import re

from tests.sources import REPO, parsed

PAGE = REPO / "docs" / "faults.md"
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w*)`")
#: what `make faults` selects; tests/faults/conftest.py gives the first to every test of its folder
_MARKS = {"faults", "quick_fault"}


def functions_of(path: str) -> set[str]:
    """Names of a module's tests."""
    tree = parsed("tests").get(path, ast.Module([], []))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def marked(mark: str) -> set[tuple[str, str]]:
    """(path, test) of what bears a mark by itself or by its module."""
    found = set()
    for path, tree in parsed("tests").items():
        of_module = [node.value for node in tree.body if isinstance(node, ast.Assign) and _is_pytestmark(node)]
        tests = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
        found |= {(path, n.name) for n in tests if any(_bears(e, mark) for e in (*of_module, *n.decorator_list))}
    return found


def _is_pytestmark(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)


def _bears(expression: ast.expr, mark: str) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == mark for node in ast.walk(expression))


def named() -> set[tuple[str, str]]:
    return set(_TEST.findall(PAGE.read_text(encoding="utf-8")))


def test_every_row_names_a_test_that_exists() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| fault ")]
    assert len(rows) > 30
    assert [row for row in rows if not _TEST.search(row)] == []
    assert {f"{path}::{name}" for path, name in named() if name not in functions_of(path)} == set()


def test_every_fault_that_is_tested_has_a_row() -> None:
    tested = {(path, name) for path in parsed("tests/faults") for name in functions_of(path)}
    assert tested
    assert tested - named() == set()
    assert marked("quick_fault") - named() == set()


def test_make_faults_runs_every_row() -> None:
    elsewhere = {(path, name) for path, name in named() if not path.startswith("tests/faults/")}
    assert elsewhere
    assert elsewhere - marked("faults") - marked("quick_fault") == set()
    recipe = (REPO / "Makefile").read_text(encoding="utf-8").partition("\nfaults:")[2].partition("\n\n")[0]
    selected = re.search(r'pytest .* -m "([\w ]+)" \$\(ARGS\)', recipe)
    assert selected is not None, recipe
    assert set(selected[1].split(" or ")) == _MARKS


def test_make_test_and_make_slow_run_the_quick_faults_too() -> None:
    assert marked("quick_fault") & marked("faults") == set()
    assert not any(path.startswith("tests/faults/") for path, _ in marked("quick_fault"))
