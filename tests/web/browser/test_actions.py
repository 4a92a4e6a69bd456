"""Buttons that cancel, retry, pause and resume: told in words, sent once, without a mouse too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from results_db.clock import utc_now
from results_db.queue.events import record_event
from results_db.tables import Attempt, Gate, Job

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(240)]

OpenTab = Callable[..., Any]
SLOW = 45_000


def fail(filler: Any, step: str) -> None:
    """The step ends with an error, and its study with it."""
    with filler.database.write() as session:
        job = session.get_one(Job, filler.jobs[step])
        job.state, job.error = "failed", {"code": "x", "message": "the disk is full", "retryable": False}
        for attempt in session.query(Attempt).where(Attempt.job_id == job.id):
            attempt.state = "failed"
        record_event(session, job, "state")


def test_a_running_job_is_paused_and_cancelled(open_tab: OpenTab, filler: Any) -> None:
    filler.study("demo", upto="sweep")
    tab = open_tab(f"/jobs/{filler.jobs['sweep']}")
    status = tab.page.locator("#action-status")
    pause = tab.page.get_by_role("button", name="Pause")
    pause.focus()
    tab.page.keyboard.press("Enter")
    expect(status).to_have_text("Pause: it is running, asked to pause.", timeout=SLOW)
    expect(pause).to_have_count(0, timeout=SLOW)
    questions: list[str] = []
    tab.page.once("dialog", lambda dialog: (questions.append(dialog.message), dialog.dismiss()))
    tab.page.get_by_role("button", name="Cancel").click()
    expect(status).to_have_text("Pause: it is running, asked to pause.")
    tab.page.once("dialog", lambda dialog: dialog.accept())
    tab.page.get_by_role("button", name="Cancel").click()
    expect(status).to_have_text("Cancel: it is running, asked to stop.", timeout=SLOW)
    expect(tab.page.get_by_role("button", name="Cancel")).to_have_count(0, timeout=SLOW)
    assert questions == ["Cancel sweep? What it has recorded stays; steps that need it will be skipped."]
    with filler.database.read() as session:
        assert session.get_one(Job, filler.jobs["sweep"]).cancel_requested
    tab.check()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_failed_in_a_study_is_retried_at_once(open_tab: OpenTab, filler: Any, theme: str) -> None:
    study = filler.study("demo", upto="sweep")
    fail(filler, "sweep")
    tab = open_tab(f"/studies/{study}", theme=theme)
    expect(tab.page.get_by_role("button", name="Retry sweep")).to_have_count(1)
    tab.page.get_by_role("button", name="Retry 1 failed job").click()
    expect(tab.page.locator("#action-status")).to_have_text("Retry 1 failed job: 1 changed.", timeout=SLOW)
    expect(tab.page.locator(f"#step-{filler.jobs['sweep']}")).to_have_attribute("data-state", "queued", timeout=SLOW)
    expect(tab.page.get_by_role("button", name="Retry 1 failed job")).to_have_count(0)
    tab.check()


def test_an_unanswered_request_is_sent_again_under_its_key(open_tab: OpenTab, filler: Any) -> None:
    filler.study("demo", upto="sweep")
    tab = open_tab(f"/jobs/{filler.jobs['sweep']}")
    keys: list[str] = []

    def lose_the_first_answer(route: Any) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) == 1:
            route.fetch()  # it was done, and nobody hears of it
            route.abort()
        else:
            route.continue_()

    tab.page.route("**/pause", lose_the_first_answer)
    pause = tab.page.get_by_role("button", name="Pause")
    # the page's own refresh would take the button away: that the server did it is just what is not known
    tab.page.route("**/live", lambda route: route.abort())
    pause.click()
    expect(tab.page.locator("#action-status")).to_contain_text("it will not be done twice", timeout=SLOW)
    pause.click()
    expect(tab.page.locator("#action-status")).to_have_text("Pause: it is running, asked to pause.", timeout=SLOW)
    assert len(set(keys)) == 1
    assert len(keys) == 2


def test_a_refusal_is_told(open_tab: OpenTab, filler: Any) -> None:
    filler.study("demo", upto="sweep")
    tab = open_tab(f"/jobs/{filler.jobs['sweep']}")
    tab.page.route("**/live", lambda route: route.abort())
    fail(filler, "sweep")
    tab.page.get_by_role("button", name="Pause").click()
    status = tab.page.locator("#action-status")
    expect(status).to_contain_text("is failed: only a waiting, queued or running job can be paused", timeout=SLOW)
    expect(status).to_have_attribute("data-tone", "bad")
    expect(tab.page.get_by_role("button", name="Pause")).not_to_have_attribute("aria-disabled", "true")


def test_what_is_made_new_is_shown(open_tab: OpenTab, filler: Any) -> None:
    study, other = filler.study("demo"), filler.study("again", upto="sweep")
    with filler.database.write() as session:
        gate = session.query(Gate).where(Gate.study_id == study).first()
        gate.stale_at, gate.stale_reason = utc_now(), "measurement 17 was invalidated"
    tab = open_tab(f"/studies/{study}")
    answer = {"status": 202, "headers": {"Location": f"/api/v1/studies/{other}"}, "body": "{}"}
    tab.page.route("**/recompute", lambda route: route.fulfill(**answer))
    tab.page.once("dialog", lambda dialog: dialog.accept())
    tab.page.get_by_role("button", name="Compute again").click()
    expect(tab.page.get_by_role("heading", name="again", exact=True)).to_be_visible(timeout=SLOW)
    assert tab.page.url.endswith(f"/studies/{other}")
