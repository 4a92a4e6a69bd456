"""Every setting says what it is, the guide has it word by word, and a misspelt one is noticed."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from results_db.setting_docs import (
    OTHERS,
    markdown_table,
    setting_rows,
    shown_settings,
    tell_settings,
    unknown_sentences,
    unknown_variables,
)
from results_db.settings import Settings

REPO = Path(__file__).resolve().parents[2]
ROWS = {row.variable: row for row in setting_rows(Settings)}


def test_the_guide_has_the_table_of_settings() -> None:
    """``SETTINGS=write`` puts it there."""
    guide = REPO / "docs" / "guide.md"
    text, table = guide.read_text(encoding="utf-8"), markdown_table(Settings)
    if os.environ.get("SETTINGS") == "write":
        start = text.index("| variable | default |")
        end = text.index("\n\n", start) + 1
        text = text[:start] + table + text[end:]
        guide.write_text(text, encoding="utf-8")
    assert table in text


@pytest.mark.parametrize("variable", ROWS)
def test_an_example_is_taken(variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = ROWS[variable]
    example = row.example
    if variable == "BITBUDGET_DATABASE_PASSWORD_FILE":
        (tmp_path / "db").write_text("secret")
        example = str(tmp_path / "db")
        monkeypatch.setenv("BITBUDGET_DATABASE_URL", ROWS["BITBUDGET_DATABASE_URL"].example)
    if variable == "BITBUDGET_HEARTBEAT_S":
        assert float(example) < Settings().lease_s
    monkeypatch.setenv(variable, example)
    name = variable.removeprefix("BITBUDGET_").lower()
    assert getattr(Settings(), name) != getattr(Settings.model_construct(), name), "an example differs from the default"


@pytest.mark.parametrize("variable", [v for v, row in ROWS.items() if row.unit])
def test_a_unit_belongs_to_a_number(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "many")
    with pytest.raises(ValidationError):
        Settings()


def test_every_variable_that_the_code_reads_is_documented() -> None:
    read = re.compile(r"""(?:environ(?:\.get)?[\[(]|getenv\(|envvar=)\s*["'](BITBUDGET_[A-Z_]+)["']""")
    rooms = ("cli", "server", "worker", "web", "results_db", "compress_core", "demo", "migrations")
    found = {
        match
        for room in rooms
        for path in (REPO / room).rglob("*.py")
        for match in read.findall(path.read_text(encoding="utf-8"))
    }
    assert "BITBUDGET_SERVER" in found
    assert found <= ROWS.keys() | OTHERS.keys()


def test_a_misspelt_variable_is_noticed() -> None:
    environ = {"BITBUDGET_DATBASE_URL": "x", "BITBUDGET_QUUX": "y", "BITBUDGET_PORT": "1", "BITBUDGET_SERVER": "z"}
    assert unknown_variables(Settings, environ) == {
        "BITBUDGET_DATBASE_URL": "BITBUDGET_DATABASE_URL",
        "BITBUDGET_QUUX": None,
    }
    first, second = unknown_sentences(Settings, environ)
    assert first.endswith("did you mean BITBUDGET_DATABASE_URL?")
    assert "the guide" in second


def test_a_process_tells_its_settings_without_passwords(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "database_url": "postgresql+psycopg://me:hunter2hunter2@h/x",
        "redis_url": "redis://:hunter2hunter2@h/0",
        "var_dir": tmp_path,
    }
    settings = Settings(**values)
    assert set(shown_settings(settings)) == set(Settings.model_fields)
    with caplog.at_level(logging.INFO):
        tell_settings(settings, {"BITBUDGET_LEASES": "1"})
    assert "hunter2" not in caplog.text
    assert "database_url=postgresql+psycopg://me:***@h/x" in caplog.text
    assert "did you mean BITBUDGET_LEASE_S?" in caplog.text
