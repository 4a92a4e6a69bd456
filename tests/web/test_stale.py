"""The pages say what is stale and why, and draw a figure anew when a cell was measured again."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import insert, select

from results_db import Database
from results_db.clock import utc_now
from results_db.stale import Affected, mark_stale
from results_db.tables import Fit, Gate, JobEvent, Measurement, RetiredMeasurement

REASON = "measurement 17 (layer 3, down, b_q 2, rank 32) was invalidated: a <broken> fan"


@pytest.mark.xdist_group("pages")
def test_a_study_that_stands_says_nothing_of_it(shown: Any) -> None:
    assert "stale" not in shown.client.get(f"/studies/{shown.ended}/live").text


def test_stale_results_have_their_mark_and_their_reason(client: TestClient, filler: Any, database: Database) -> None:
    study = filler.study("demo")
    with database.write() as session:
        fit = session.scalars(select(Fit)).one()
        gate = session.scalars(select(Gate).where(Gate.phase == 2)).one()
        mark_stale(session, Affected({fit.id: REASON}, {}, {gate.id: f"fit {fit.id} is stale: {REASON}"}))
    html = client.get(f"/studies/{study}/live").text
    escaped = REASON.replace("<", "&lt;").replace(">", "&gt;")
    banner = re.search(r'<p class="banner tone-warn" id="stale">(.*?)</p>', html)
    assert banner
    assert banner.group(1).startswith("Stale: 1 fit and 1 gate of this study stand on measurements")
    assert f"/studies/{study}/recompute" in banner.group(1)
    assert escaped in banner.group(1)
    assert html.count('<span class="chip tone-warn" title=') == 2, "the fit's step and the gate's"
    assert f'<span class="chip tone-warn">stale</span> fit {fit.id} is stale: {escaped}' in html
    page = client.get(f"/jobs/{fit.job_id}").text
    assert f"What this job made is stale: {escaped}" in page
    with database.read() as session:
        note = session.scalars(select(JobEvent).where(JobEvent.job_id == fit.job_id).order_by(JobEvent.id)).all()[-1]
    assert (note.kind, note.payload) == ("note", {"message": f"stale: {REASON}"})


def test_a_cell_that_was_measured_again_is_a_new_version_of_its_figure(
    client: TestClient, filler: Any, database: Database
) -> None:
    study = filler.study("demo")
    url = f"/studies/{study}/figures/errors.json"
    tag = client.get(url).headers["etag"]
    with database.write() as session:
        old = session.scalars(select(Measurement).order_by(Measurement.id.desc()).limit(1)).one()
        row = {name: value for name, value in old.as_dict().items() if name != "id"}
        told = {
            "measurement_id": old.id,
            "reason": "again",
            "retired_at": utc_now(),
            "replaced_by_sweep_id": old.sweep_id,
        }
        session.execute(insert(RetiredMeasurement).values(**row, **told))
        session.delete(old)
        session.flush()
        session.execute(insert(Measurement).values(**row | {"calibration_weighted_error": 7.125}))
    again = client.get(url, headers={"If-None-Match": tag})
    assert again.status_code == 200
    assert again.headers["etag"] != tag
    assert "7.125" in again.text
