"""The SQL page's HTML."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest

from results_db.sql.canned import CANNED
from results_db.sql.contract import CONTRACT

pytestmark = [pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True), pytest.mark.xdist_group("pages")]


def test_the_page_has_every_question_view_and_column(shown: Any) -> None:
    answer = shown.client.get("/sql")
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    options = re.findall(r'<option value="([\w-]+)" data-sql="(.*?)" data-parameters="(.*?)">', answer.text, re.DOTALL)
    assert {name: html.unescape(sql) for name, sql, _ in options} == {q.name: q.sql for q in CANNED.values()}
    for name, _, parameters in options:
        assert [p["name"] for p in json.loads(html.unescape(parameters))] == [p.name for p in CANNED[name].parameters]
    shown = html.unescape(answer.text)
    for view in CONTRACT.values():
        assert f"<code>{view.name}</code>" in answer.text
        for column in view.columns:
            assert f"<td>{column.meaning}</td>" in shown, (view.name, column.name)


def test_every_page_leads_to_it(shown: Any) -> None:
    assert '<a href="/sql" >SQL</a>' in shown.client.get("/").text
    assert '<a href="/sql" aria-current="page">SQL</a>' in shown.client.get("/sql").text
