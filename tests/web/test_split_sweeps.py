"""A split sweep is one line: its layers are folded into it, wherever jobs are listed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from results_db import Database
from results_db.tables import Job

STATES = ("succeeded", "running", "failed", "queued")


@pytest.fixture
def study(filler: Any) -> str:
    """A study whose sweep waits for four layers: one done, one running, one failed, one queued."""
    study = filler.study("demo", upto="sweep")
    filler.split_sweep(STATES)
    return str(study)


def test_the_study_shows_one_step_with_its_layers_folded_in(client: TestClient, filler: Any, study: str) -> None:
    html = client.get(f"/studies/{study}").text
    whole = filler.jobs["sweep"]
    assert re.findall(r'id="run-(\w+)"', html) == [whole]
    assert "50 / 200" in html
    assert "1 min 23 s left" in html
    tally = re.search(r"(\d+) / (\d+) steps", html)
    assert tally
    assert int(tally[2]) == len(re.findall(r'<li class="step [^>]*id="step-', html)) - len(STATES)
    folded = re.search(rf'<details class="layers" id="layers-{whole}">(.*?)</details>', html, re.DOTALL)
    assert folded
    assert "<summary>1 of 4 layers, 1 failed</summary>" in folded[1]
    assert re.findall(r'data-state="(\w+)"', folded[1]) == list(STATES)
    assert "weight 2.up holds NaN" in folded[1]
    assert f'id="step-{whole}" data-state="running"' in html


def test_lists_of_jobs_hold_the_sweep_and_not_its_layers(client: TestClient, filler: Any, study: str) -> None:
    html = client.get("/").text
    assert re.findall(r'id="run-(\w+)"', html) == [filler.jobs["sweep"]]
    assert "The queue is empty." in html
    assert all(filler.jobs[f"sweep:layer-{n}"] not in html for n in range(4))


def test_a_sweep_whose_layers_wait_for_a_worker_is_queued(
    client: TestClient, filler: Any, study: str, database: Database
) -> None:
    with database.write() as session:
        for n in range(4):
            part = session.get_one(Job, filler.jobs[f"sweep:layer-{n}"])
            part.state, part.started_at, part.finished_at = "queued", None, None
    html = client.get("/").text
    assert f'id="row-{filler.jobs["sweep"]}"' in html
    assert "Nothing is running." in html


def test_job_pages_lead_from_the_sweep_to_its_layers_and_back(client: TestClient, filler: Any, study: str) -> None:
    whole, part = filler.jobs["sweep"], filler.jobs["sweep:layer-2"]
    html = client.get(f"/jobs/{whole}").text
    assert f'href="/jobs/{part}"' in html
    assert f'id="need-{filler.jobs["sensitivity"]}"' in html
    assert f'id="need-{part}"' not in html
    back = client.get(f"/jobs/{part}").text
    assert f'a layer of <a href="/jobs/{whole}">sweep</a>' in back
