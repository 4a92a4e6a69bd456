"""The pages' HTML, over SQLite and PostgreSQL."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from results_db import Database
from results_db.tables import Job, Measurement, Study, ValidationItem
from web.study_figures import FIGURES, FOLDED

#: in one process, which fills a page once
pytestmark = pytest.mark.xdist_group("pages")

HOSTILE = """<script>alert("x")</script>'"><img src=x onerror=alert(1)>"""
PAGES = ("/", "/studies/{study}", "/jobs/{job}", "/studies/none", "/jobs/none")


def test_first_page_says_how_to_submit_when_empty(client: TestClient) -> None:
    html = client.get("/").text
    assert "bitbudget submit configs/demo.yaml" in html
    assert "curl -X POST http://127.0.0.1/api/v1/studies" in html
    assert "No worker has registered" in html


def test_first_page_lists_studies_running_jobs_and_workers(shown: Any) -> None:
    html = shown.client.get("/").text
    assert f'href="/studies/{shown.ended}"' in html
    assert f'href="/studies/{shown.running}"' in html
    assert f'id="run-{shown.jobs["sweep"]}"' in html
    assert "1 min 23 s left" in html
    assert "optimal beats best uniform by 5.60 %" in html
    assert "worker_" in html


def test_study_page_has_phases_gates_and_headline(shown: Any) -> None:
    html = shown.client.get(f"/studies/{shown.ended}").text
    for phase in ("Phase 0: Pilot", "Phase 1: Error sweep", "Phase 4: Compress and compare"):
        assert phase in html
    for verdict in ("GO", "NO-GO", "NOT DECIDABLE"):
        assert f"</svg>{verdict}</span>" in html
    assert "[4.100, 6.900]" in html
    assert "Fallback: Re-examine the error model." in html
    assert "optimal is better" in html
    assert "report split: read once, after everything was chosen" in html
    assert html.count("<figure ") == html.count("<details><summary>Table") == len(FIGURES)


def test_every_number_of_a_figure_stands_in_its_table(shown: Any) -> None:
    html = shown.client.get(f"/studies/{shown.ended}/figures/outcome.html").text
    spec = shown.client.get(f"/studies/{shown.ended}/figures/outcome.json").json()["spec"]
    for row in spec["data"]["values"]:
        assert row["model"] in html
        assert f"{row['ppl']:.4g}" in html.replace("\u2212", "-")


def test_partial_sweep_shows_what_is_missing(shown: Any) -> None:
    figure = shown.client.get(f"/studies/{shown.running}/figures/errors.json").json()
    states = [row["status"] for row in figure["spec"]["data"]["values"]]
    assert states.count("measured") == states.count("not measured") == len(states) // 2
    assert "hatched: not measured" in figure["caption"]
    assert "not measured" in shown.client.get(f"/studies/{shown.running}").text


def test_figure_versions_follow_the_rows(client: TestClient, filler: Any) -> None:
    study = filler.study("demo", upto="sweep", sweep_share=0.25)

    def versions() -> dict[str, str]:
        html = client.get(f"/studies/{study}/live").text
        found = re.search(r'id="figure-versions" hidden ([^>]*)>', html)
        assert found
        return dict(re.findall(r'data-(\w+)="([^"]*)"', found.group(1)))

    before = versions()
    assert versions() == before
    filler.measure(0.5)
    after = versions()
    assert {name for name in after if after[name] != before[name]} == {"errors"}


def test_unchanged_figure_costs_304(shown: Any) -> None:
    url = f"/studies/{shown.ended}/figures/fit.json"
    tag = shown.client.get(url).headers["etag"]
    assert shown.client.get(url, headers={"If-None-Match": tag}).status_code == 304


def test_job_page_shows_params_history_attempts_and_error(client: TestClient, filler: Any, database: Database) -> None:
    filler.study("demo", upto="sweep")
    job_id = filler.jobs["sweep"]
    with database.write() as session:
        job = session.get_one(Job, job_id)
        job.state = "failed"
        job.error = {
            "code": "not-finite",
            "message": "weight 3.down holds NaN",
            "type": "NotFiniteError",
            "retryable": False,
            "traceback": "Traceback (most recent call last):\n  File 'a.py', line 1",
        }
    html = client.get(f"/jobs/{job_id}").text
    assert "weight 3.down holds NaN" in html
    assert "a retry cannot help" in html
    assert "Traceback (most recent call last)" in html
    assert "NotFiniteError" in html
    assert "Attempts" in html
    assert "812.000 MB" in html
    assert "&#34;model_id&#34;" in html


def test_hostile_names_stay_text(client: TestClient, filler: Any, database: Database) -> None:
    study = filler.study(HOSTILE, upto="sweep")
    with database.write() as session:
        row = session.get_one(Study, study)
        row.reason, row.config = HOSTILE, {"name": HOSTILE}
        job = session.get_one(Job, filler.jobs["sweep"])
        job.progress = {"done": 1, "total": 2, "message": HOSTILE, "eta_s": None}
        job.error = {"message": HOSTILE, "code": HOSTILE, "traceback": HOSTILE}
    for url in (
        "/",
        f"/studies/{study}",
        f"/studies/{study}/live",
        f"/jobs/{filler.jobs['sweep']}",
        f"/studies/{HOSTILE}",
    ):
        html = client.get(url).text
        assert "<script>alert" not in html
        assert "<img" not in html
        assert "&lt;script&gt;" in html or "studies/" in url


def test_pages_are_strict_and_whole(shown: Any) -> None:
    for url in PAGES:
        response = shown.client.get(url.format(study=shown.running, job=shown.jobs["sweep"]))
        assert response.status_code == (404 if url.endswith("none") else 200)
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        html = response.text
        # nothing inline that the policy would refuse, nothing from elsewhere
        assert not re.search(r"<style|\sstyle=|\son\w+=", html)
        assert not re.search(r"<script(?![^>]*\ssrc=)", html)
        assert not re.search(r'(?:src|href)="(?:https?:)?//', html)
        assert html.count("<h1") == 1
        for part in ('<main id="main"', 'class="skip"', '<html lang="en">', "<nav", 'rel="icon"'):
            assert part in html
        ids = re.findall(r'\sid="([^"]+)"', html)
        assert len(ids) == len(set(ids))


def test_figures_of_a_study_without_results_say_what_is_missing(client: TestClient, filler: Any) -> None:
    study = filler.study("demo", upto="calibrate")
    for name in FIGURES:
        figure = client.get(f"/studies/{study}/figures/{name}.json").json()
        assert figure["spec"] is None
        assert "yet" in figure["caption"]


def test_unknown_figures_are_not_found(shown: Any) -> None:
    for missing in (f"{shown.running}/figures/other.json", "none/figures/errors.json"):
        refused = shown.client.get(f"/studies/{missing}")
        assert (refused.status_code, refused.headers["content-type"]) == (404, "application/problem+json")
        assert refused.json()["type"] == "urn:bitbudget:problem:not-found"
    assert shown.client.get("/studies/none/figures/errors.html").status_code == 404


def test_specs_are_json_without_nan(shown: Any) -> None:
    for name in FIGURES:
        # NaN and Infinity are words that Python reads and JSON does not know
        json.loads(shown.client.get(f"/studies/{shown.ended}/figures/{name}.json").text, parse_constant=pytest.fail)


def test_every_figure_of_a_study_that_ended_is_drawn(shown: Any) -> None:
    captions = {}
    for name in FIGURES:
        figure = shown.client.get(f"/studies/{shown.ended}/figures/{name}.json").json()
        assert figure["spec"] is not None, (name, figure["caption"])
        captions[name] = figure["caption"]
    assert "rank correlation 0.960 [0.910, 0.990]" in captions["prediction"]
    assert "A: 0; B: 1" in captions["errors"]
    assert "Chosen: additive (the least error)" in captions["forms"]
    assert "e8 2b r0" in captions["fidelity"]
    assert "KL anchors: 95 % within" in captions["estimates"]
    frontier = shown.client.get(f"/studies/{shown.ended}/figures/frontier.json").json()
    roles = [point["role"] for point in frontier["spec"]["data"]["values"]]
    assert (roles.count("optimal"), roles.count("uniform")) == (1, 9)


def test_what_is_folded_can_be_unfolded(shown: Any) -> None:
    html = shown.client.get(f"/studies/{shown.ended}").text
    more = html[html.index('class="more-figures"') :]
    for name in FOLDED:
        assert f'id="figure-{name}"' in more


def test_the_headline_tells_the_ceiling_and_how_true_the_prediction_was(shown: Any) -> None:
    html = shown.client.get(f"/studies/{shown.ended}").text
    assert "The original itself would gain 26.20 % over best uniform." in html
    assert "Predicted KL ranked 12 allocations" in html


def test_allocations_of_a_second_budget_are_told_apart(client: TestClient, filler: Any, database: Database) -> None:
    study = filler.study("demo")
    with database.write() as session:
        session.get_one(Job, filler.jobs["validate:choice"]).step = "validate:choice@2"
        for item in session.query(ValidationItem):
            base, dash, number = item.name.partition("-")
            item.name = f"{base}@2{dash}{number}"
    values = client.get(f"/studies/{study}/figures/prediction.json").json()["spec"]["data"]["values"]
    assert {value["budget"] for value in values} == {"budget 2"}
    assert [value["role"] for value in values].count("random") == 10
    assert {"optimal", "uniform", "random-01"} <= {value["allocation"] for value in values}


def test_a_frontier_that_cannot_be_told_says_why(client: TestClient, filler: Any, database: Database) -> None:
    study = filler.study("demo")
    with database.write() as session:
        session.query(Measurement).delete()
    figure = client.get(f"/studies/{study}/figures/frontier.json").json()
    assert figure["spec"] is None
    assert figure["caption"].startswith("There is no frontier: ")
    assert len(figure["caption"]) > 40
