"""Values at the ends of what a type holds, and texts that mean more elsewhere than here."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from results_db.cells import csv_lines

ENDS = ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z")


@pytest.mark.parametrize("name", ["created_after", "created_before"])
def test_moments_at_the_ends_of_the_calendar(client: TestClient, name: str) -> None:
    for moment in ENDS:
        assert client.get("/api/v1/jobs", params={name: moment}).status_code == 200


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_text_is_a_formula_for_a_spreadsheet(first: str) -> None:
    line = csv_lines([[f"{first}HYPERLINK(1)"]])
    assert line.removeprefix('"').startswith("'")
