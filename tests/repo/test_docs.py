"""Documents that name things name things that exist."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

import results_db.tables  # noqa: F401  # fills the metadata
from cli.errors import ExitCode
from results_db.base import Base
from results_db.views import create_statements

REPO = Path(__file__).resolve().parents[2]
GUIDE = REPO / "docs" / "guide.md"
PAGES = sorted((REPO / "docs").glob("*.md"))
DECISIONS = sorted((REPO / "docs" / "decisions").glob("*.md"))
_BLOCK = re.MULTILINE | re.DOTALL
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_is_in_the_guide(code: ExitCode) -> None:
    assert f"| {int(code)} |" in GUIDE.read_text(encoding="utf-8")


def test_the_guides_queries_ask_for_columns_that_exist() -> None:
    connection = sqlite3.connect(":memory:")
    for table in Base.metadata.sorted_tables:
        connection.execute(f"CREATE TABLE {table.name} ({', '.join(column.name for column in table.columns)})")
    for statement in create_statements("sqlite"):
        connection.execute(statement)
    guide = GUIDE.read_text(encoding="utf-8")
    queries = [query for block in re.findall(r"^```sql\n(.*?)^```$", guide, _BLOCK) for query in block.split(";")]
    queries += re.findall(r'^bitbudget sql "(.*?)"$', guide, _BLOCK)
    asked = [query for query in queries if query.strip()]
    assert len(asked) >= 3
    for query in asked:
        assert connection.execute(query).description


@pytest.mark.parametrize("path", [REPO / "README.md", *PAGES, *DECISIONS], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    missing = [link for link in _LINK.findall(text) if not (path.parent / link).exists()]
    assert not missing


def test_decisions_are_numbered_and_fit_one_page() -> None:
    assert [path.name[:3] for path in DECISIONS] == [f"{n:03d}" for n in range(1, len(DECISIONS) + 1)]
    for path in DECISIONS:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {path.name[:3]} "), path.name
        assert text.count("\n") < 60, path.name
