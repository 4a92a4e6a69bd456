"""The page in Chromium: live, drawn, strict, and usable without a mouse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from results_db.queue.events import record_event
from results_db.tables import Gate, Job
from web.study_figures import FIGURES

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(240)]

OpenTab = Callable[..., Any]
#: a deadline, not an expectation: two cores may be busy with other things
SLOW = 45_000
DRAWN = "[data-chart][data-drawn]"


def _background(tab: Any) -> str:
    return str(tab.page.evaluate("() => getComputedStyle(document.body).backgroundColor"))


def test_progress_moves_without_reload(open_tab: OpenTab, filler: Any) -> None:
    study = filler.study("demo", upto="sweep")
    tab = open_tab(f"/studies/{study}")
    run = tab.page.locator(f"#run-{filler.jobs['sweep']}")
    expect(tab.page.locator("#stream")).to_have_attribute("data-state", "live", timeout=SLOW)
    tab.page.evaluate("() => { window.sameDocument = true; }")
    for done, eta, said in ((200, 61.0, "1 min 01 s left"), (300, 9.0, "9.0 s left")):
        filler.progress("sweep", done, 400, eta)
        expect(run.locator("progress")).to_have_attribute("value", f"{done / 4:.1f}", timeout=SLOW)
        expect(run).to_contain_text(f"{done} / 400")
        expect(run).to_contain_text(said)
    assert tab.page.evaluate("() => window.sameDocument") is True
    tab.check()


def test_state_and_gates_arrive_live(open_tab: OpenTab, filler: Any) -> None:
    study = filler.study("demo", upto="sweep")
    tab = open_tab(f"/studies/{study}")
    step = tab.page.locator(f"#step-{filler.jobs['sweep']}")
    expect(step).to_have_attribute("data-state", "running")
    with filler.database.write() as session:
        job = session.get_one(Job, filler.jobs["sweep"])
        job.state = "succeeded"
        gate = Gate(id="gte_new", study_id=study, job_id=job.id, phase=1, name="error_varies", verdict="NO-GO")
        gate.question, gate.value, gate.threshold, gate.explanation = "Does it vary?", 2.5, 10.0, "too little"
        session.add(gate)
        record_event(session, job, "state")
    expect(step).to_have_attribute("data-state", "succeeded", timeout=SLOW)
    expect(tab.page.locator("#gate-gte_new")).to_contain_text("NO-GO")
    expect(tab.page.locator("#summary")).to_contain_text("4 of 17 steps ended")
    tab.check()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_charts_are_drawn_in_both_themes(open_tab: OpenTab, filler: Any, theme: str, width: int) -> None:
    study = filler.study("demo")
    tab = open_tab(f"/studies/{study}", theme=theme, width=width)
    expect(tab.page.locator(DRAWN)).to_have_count(len(FIGURES), timeout=SLOW)
    assert tab.page.locator("#figure-outcome svg path").count() > 3
    # a canvas that holds more than one colour is not blank
    colours = tab.page.locator("#figure-errors canvas").evaluate(
        "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size"
    )
    assert colours > 10
    dark = sum(map(int, _background(tab).removeprefix("rgb(").removesuffix(")").split(","))) < 200
    assert dark == (theme == "dark")
    # nothing makes the page itself wider than the screen
    assert tab.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    tab.check()


def test_heatmap_fills_while_the_sweep_runs(open_tab: OpenTab, filler: Any) -> None:
    study = filler.study("demo", upto="sweep", sweep_share=0.25)
    tab = open_tab(f"/studies/{study}")
    figure = tab.page.locator("#figure-errors")
    expect(figure.locator(DRAWN)).to_have_count(1, timeout=SLOW)
    expect(figure.locator("[data-caption]")).to_contain_text("126 of 168 cells are hatched")
    figure.locator("summary").click()
    filler.measure(0.75)
    filler.progress("sweep", 126, 168, 20.0)
    expect(figure.locator("[data-caption]")).to_contain_text("42 of 168 cells are hatched", timeout=SLOW)
    # the open table follows
    expect(figure.locator("td.missing")).to_have_count(42, timeout=SLOW)
    assert int(figure.locator(DRAWN).get_attribute("data-drawn") or 0) <= 3
    tab.check()


def test_theme_toggle_by_keyboard_is_remembered(open_tab: OpenTab, filler: Any) -> None:
    filler.study("demo")
    tab = open_tab("/")
    light = _background(tab)
    tab.page.keyboard.press("Tab")
    expect(tab.page.locator(".skip")).to_be_focused()
    dark = tab.page.get_by_role("button", name="Dark")
    for _ in range(12):
        tab.page.keyboard.press("Tab")
        if dark.evaluate("b => b === document.activeElement"):
            break
    expect(dark).to_be_focused()
    tab.page.keyboard.press("Enter")
    expect(dark).to_have_attribute("aria-pressed", "true")
    assert _background(tab) != light
    tab.page.reload()
    expect(tab.page.get_by_role("button", name="Dark")).to_have_attribute("aria-pressed", "true")
    assert _background(tab) != light
    tab.page.get_by_role("button", name="System").click()
    assert _background(tab) == light
    tab.check()


def test_toggle_redraws_the_charts(open_tab: OpenTab, filler: Any) -> None:
    study = filler.study("demo")
    tab = open_tab(f"/studies/{study}")
    expect(tab.page.locator(DRAWN)).to_have_count(len(FIGURES), timeout=SLOW)
    tab.page.get_by_role("button", name="Dark").click()
    expect(tab.page.locator('#figure-fit [data-chart][data-drawn="2"]')).to_have_count(1, timeout=SLOW)
    tab.check()


def test_tooltip_has_the_numbers_and_the_pages_style(open_tab: OpenTab, filler: Any) -> None:
    study = filler.study("demo")
    tab = open_tab(f"/studies/{study}")
    expect(tab.page.locator(DRAWN)).to_have_count(len(FIGURES), timeout=SLOW)
    tab.page.locator("#figure-outcome svg .mark-symbol path").first.hover()
    tooltip = tab.page.locator("#vg-tooltip-element.visible")
    expect(tooltip).to_contain_text("95 % low")
    assert tooltip.evaluate("t => getComputedStyle(t).position") == "fixed"
    tab.check()


def test_open_details_and_focus_survive_updates(open_tab: OpenTab, filler: Any) -> None:
    filler.study("demo", upto="sweep")
    tab = open_tab(f"/jobs/{filler.jobs['sweep']}")
    link = tab.page.locator(".crumbs a").first
    link.focus()
    filler.progress("sweep", 300, 400, 5.0)
    expect(tab.page.locator("#live progress")).to_have_attribute("value", "75.0", timeout=SLOW)
    expect(link).to_be_focused()
    tab.check()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_layers_unfold_by_keyboard_and_stay_open(open_tab: OpenTab, filler: Any, theme: str) -> None:
    study = filler.study("demo", upto="sweep")
    filler.split_sweep(["succeeded", "running", "failed", *["queued"] * 25])
    tab = open_tab(f"/studies/{study}", theme=theme, width=380)
    expect(tab.page.locator("#stream")).to_have_attribute("data-state", "live", timeout=SLOW)
    layers = tab.page.locator(f"#layers-{filler.jobs['sweep']}")
    expect(layers.locator("li").first).to_be_hidden()
    layers.locator("summary").focus()
    tab.page.keyboard.press("Enter")
    expect(layers.locator("li").first).to_be_visible()
    assert tab.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    filler.progress("sweep", 150, 200, 5.0)
    expect(tab.page.locator(f"#run-{filler.jobs['sweep']} progress")).to_have_attribute("value", "75.0", timeout=SLOW)
    expect(layers.locator("li").first).to_be_visible()
    expect(layers.locator("summary")).to_be_focused()
    # what failed stands out in both themes
    colours = [
        layers.locator(f"#step-{filler.jobs[step]} .step-word").evaluate("e => getComputedStyle(e).color")
        for step in ("sweep:layer-2", "sweep:layer-3")
    ]
    assert colours[0] != colours[1]
    tab.check()


def test_first_page_shows_a_new_study_without_reload(open_tab: OpenTab, filler: Any) -> None:
    tab = open_tab("/")
    expect(tab.page.locator("main")).to_contain_text("No study yet")
    expect(tab.page.locator("#stream")).to_have_attribute("data-state", "live", timeout=SLOW)
    study = filler.study("<b>bold</b> demo", upto="sweep")
    card = tab.page.locator(f"#card-{study}")
    expect(card).to_contain_text("<b>bold</b> demo", timeout=SLOW)
    expect(card.locator("b")).to_have_count(0)
    tab.check()


def test_two_tabs_share_one_stream(open_tab: OpenTab, filler: Any) -> None:
    study = filler.study("demo", upto="sweep")
    tab = open_tab(f"/studies/{study}")
    expect(tab.page.locator("#stream")).to_have_attribute("data-state", "live", timeout=SLOW)
    second = tab.page.context.new_page()
    streams: list[str] = []
    second.on("request", lambda request: streams.append(request.url) if "/api/v1/events" in request.url else None)
    second.goto(tab.page.url)
    expect(second.locator("#stream")).to_have_attribute("data-state", "live", timeout=SLOW)
    filler.progress("sweep", 300, 400, 5.0)
    for page in (tab.page, second):
        run = page.locator(f"#run-{filler.jobs['sweep']} progress")
        expect(run).to_have_attribute("value", "75.0", timeout=SLOW)
    assert streams == []
    # the first tab goes; the second takes the stream over
    tab.page.close()
    expect(second.locator("#stream")).to_have_attribute("data-state", "live", timeout=SLOW)
    filler.progress("sweep", 360, 400, 2.0)
    expect(second.locator(f"#run-{filler.jobs['sweep']} progress")).to_have_attribute("value", "90.0", timeout=SLOW)
    assert len(streams) == 1


def test_lost_server_is_told_and_found_again(open_tab: OpenTab, filler: Any, server: Any) -> None:
    study = filler.study("demo", upto="sweep")
    tab = open_tab(f"/studies/{study}")
    badge = tab.page.locator("#stream")
    expect(badge).to_have_attribute("data-state", "live", timeout=SLOW)
    server.stop()
    expect(badge).to_have_attribute("data-state", "stale", timeout=SLOW)
    expect(badge).to_contain_text("stale since")
    filler.progress("sweep", 300, 400, 5.0)
    server.start()
    expect(badge).to_have_attribute("data-state", "live", timeout=SLOW)
    run = tab.page.locator(f"#run-{filler.jobs['sweep']} progress")
    expect(run).to_have_attribute("value", "75.0", timeout=SLOW)


def test_tables_speak_where_scripts_do_not_run(browser: Any, server: Any, filler: Any) -> None:
    study = filler.study("demo")
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{server.url}/studies/{study}")
        page.locator("#figure-outcome summary").click()
        expect(page.locator("#figure-outcome table")).to_contain_text("best uniform")
        expect(page.locator("#figure-outcome [data-note]")).to_be_hidden()
