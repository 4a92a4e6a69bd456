"""The SQL page in Chromium: by keyboard, as text, in both themes, under the strict policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from results_db.tables import Model

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(240)]

OpenTab = Callable[..., Any]
SLOW = 45_000
HOSTILE = """<img src=x onerror="window.hit=1"><script>window.hit=1</script>"""


def ask(tab: Any, sql: str) -> None:
    """By keyboard alone."""
    tab.page.get_by_label("One SELECT").fill(sql)
    tab.page.keyboard.press("Control+Enter")


def test_a_question_is_asked_answered_and_downloaded(open_tab: OpenTab, filler: Any) -> None:
    filler.study("demo")
    tab = open_tab("/sql")
    tab.page.get_by_label("Question").select_option("worst-matrices")
    expect(tab.page.get_by_label("limit: at most so many rows")).to_have_value("10")
    tab.page.get_by_label("limit: at most so many rows").fill("3")
    tab.page.get_by_label("limit: at most so many rows").press("Control+Enter")
    expect(tab.page.locator("#sql-table tbody tr")).to_have_count(3, timeout=SLOW)
    expect(tab.page.locator("#sql-table thead th").first).to_have_text("model")
    expect(tab.page.locator("#sql-status")).to_contain_text("3 rows in")
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename == "worst-matrices.csv"
    assert download.value.path().read_text().splitlines()[0].startswith("model,layer_idx,projection")
    tab.check()


def test_an_answer_is_text_and_never_markup(open_tab: OpenTab, filler: Any) -> None:
    with filler.database.write() as session:
        session.add(Model(id="m", name=HOSTILE, source="s", matrices=[], config={}))
    tab = open_tab("/sql")
    quoted = HOSTILE.replace('"', '""')
    ask(tab, f'SELECT name AS "{quoted}", NULL AS n, 5 AS b FROM models_overview WHERE id = :id')
    tab.page.locator("#sql-param-id").fill("m")
    tab.page.keyboard.press("Control+Enter")
    expect(tab.page.locator("#sql-table td").first).to_have_text(HOSTILE, timeout=SLOW)
    expect(tab.page.locator("#sql-table th").first).to_have_text(HOSTILE)
    expect(tab.page.locator("#sql-table td").nth(1)).to_have_text("null")
    assert tab.page.locator("#sql-table img, #sql-table script").count() == 0
    assert tab.page.evaluate("() => window.hit") is None
    tab.check()


def test_a_refusal_is_told_and_the_last_answer_stays(open_tab: OpenTab, filler: Any) -> None:
    tab = open_tab("/sql")
    ask(tab, "SELECT 1 AS x")
    expect(tab.page.locator("#sql-table td")).to_have_text("1", timeout=SLOW)
    tab.problems.clear()
    for sql, says in (("DELETE FROM models", "only SELECT is allowed"), ("SELECT nope FROM errors", "no such column")):
        ask(tab, sql)
        expect(tab.page.get_by_role("alert")).to_contain_text(says, timeout=SLOW)
    expect(tab.page.locator("#sql-table td")).to_have_text("1")
    expect(tab.page.locator("#sql-status")).to_have_text("The rows below are those of the query before.")
    # the browser itself logs each answer that is no 2xx
    assert all("422" in line for line in tab.problems), tab.problems


def test_escape_stops_a_query(open_tab: OpenTab, server: Any) -> None:
    server.app.state.sql_console._seconds = 120.0
    tab = open_tab("/sql")
    ask(tab, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
    expect(tab.page.get_by_role("button", name="Stop")).to_be_visible(timeout=SLOW)
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator("#sql-status")).to_have_text("stopped", timeout=SLOW)
    expect(tab.page.get_by_role("button", name="Stop")).to_be_hidden()
    # by mouse as well, and from wherever the focus is then
    tab.page.get_by_role("button", name="Run").click()
    expect(tab.page.get_by_role("button", name="Stop")).to_be_visible(timeout=SLOW)
    tab.page.get_by_role("heading", name="Ask the results").click()
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator("#sql-status")).to_have_text("stopped", timeout=SLOW)
    # another query takes the place of one that runs
    tab.page.get_by_role("button", name="Run").click()
    expect(tab.page.get_by_role("button", name="Stop")).to_be_visible(timeout=SLOW)
    ask(tab, "SELECT 7 AS x")
    expect(tab.page.locator("#sql-table td")).to_have_text("7", timeout=SLOW)
    tab.check()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_narrow_screen_in_both_themes(open_tab: OpenTab, filler: Any, theme: str) -> None:
    filler.study("demo")
    tab = open_tab("/sql", theme=theme, width=380)
    tab.page.get_by_label("Question").select_option("error-by-config")
    tab.page.get_by_role("button", name="Run").click()
    expect(tab.page.locator("#sql-table tbody tr").first).to_be_visible(timeout=SLOW)
    tab.page.locator("details summary").first.click()
    assert tab.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    tab.check()
