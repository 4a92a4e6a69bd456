"""Logging in as a browser does: the cookie opens pages, data and the event stream, until its token is revoked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import expect

from results_db import Database
from results_db.settings import Settings
from results_db.tokens import Scope, create_token, revoke_token
from server.app import create_app

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(240)]

SLOW = 45_000


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """The page behind tokens."""
    return create_app(settings.model_copy(update={"require_token": True}), run_loop=False)


def test_in_and_out(open_tab: Callable[..., Any], filler: Any, database: Database) -> None:
    with database.write() as session:
        secret = create_token(session, "laptop", Scope.READ).secret
    study = filler.study("demo", upto="sweep")
    tab = open_tab(f"/studies/{study}")
    page = tab.page
    expect(page).to_have_title("Access · bitbudget")
    page.get_by_label("Token").fill("bb_" + "A" * 43)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("lets nobody in")
    page.get_by_label("Token").fill(secret)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/studies/{study}")
    # data and the stream come with the cookie, which no script can see
    expect(page.locator("#stream")).to_have_attribute("data-state", "live", timeout=SLOW)
    assert page.evaluate("() => document.cookie") == ""
    assert [cookie["name"] for cookie in page.context.cookies()] == ["bitbudget_session"]
    assert page.evaluate("() => window.violations") == []
    # the token goes, and the page asks for another one by itself
    with database.write() as session:
        revoke_token(session, "laptop")
    filler.progress("sweep", 200, 400, 61.0)
    page.wait_for_url("**/login?next=*", timeout=SLOW)
    # the only complaint is of the refusals that were asked for
    assert [problem for problem in tab.problems if "401" not in problem] == []
