"""Measurements that count no more: who may retire them, and what takes their place."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from results_db.errors import LeaseLost
from results_db.queue.lease import reap_expired
from results_db.recording import count_own_cells, record_measurement
from results_db.retire import count_replaced, forced_cells, hold_measured, notice_retired, record_again
from results_db.tables import Measurement, RetiredMeasurement
from tests.results_db.bench import CELLS, Bench


@pytest.fixture
def bench(queue: Any) -> Bench:
    return Bench(queue)


# --- forced sweeps -------------------------------------------------------------------------------------------------


def test_a_forced_sweep_takes_the_place_of_what_was_known_cell_by_cell(bench: Bench) -> None:
    first = bench.measured()
    claim, forced = bench.sweep()
    old = bench.rows(Measurement)[0]
    assert bench.again(claim, forced, CELLS[0], 0.2)
    assert not bench.again(claim, forced, CELLS[0], 0.3), "its own row counts as done"
    (retired,) = bench.rows(RetiredMeasurement)
    assert (retired.measurement_id, retired.sweep_id, retired.replaced_by_sweep_id) == (old.id, first, forced)
    assert retired.reason == f"measured again by sweep {forced}"
    same = [c.name for c in Measurement.__table__.c if c.name != "id"]
    assert {name: getattr(retired, name) for name in same} == {name: getattr(old, name) for name in same}
    rows = bench.rows(Measurement)
    assert len(rows) == len(CELLS), "what it has not come to is still there"
    assert {r.sweep_id: r.calibration_weighted_error for r in rows} == {first: 0.1, forced: 0.2}
    with bench.queue.database.read() as session:
        assert forced_cells(session, forced) == {CELLS[0]}
        assert forced_cells(session, forced, device_kind="cuda") == set()
        assert count_own_cells(session, forced) == count_replaced(session, forced) == 1


def test_an_unknown_cell_is_recorded_and_nothing_retired(bench: Bench) -> None:
    claim, forced = bench.sweep()
    assert bench.again(claim, forced, CELLS[0])
    bench.measured()
    assert bench.again(claim, forced, CELLS[1], device_kind="cuda"), "another kind of device is another cell"
    assert bench.rows(RetiredMeasurement) == []
    assert len(bench.rows(Measurement)) == len(CELLS) + 1


def test_a_stale_worker_retires_nothing(bench: Bench) -> None:
    bench.measured()
    claim, forced = bench.sweep()
    bench.queue.expire(claim)
    assert bench.queue.do(reap_expired) == [claim.attempt_id]
    with pytest.raises(LeaseLost):
        bench.again(claim, forced, CELLS[0], 0.2)
    assert bench.rows(RetiredMeasurement) == []
    assert [row.calibration_weighted_error for row in bench.rows(Measurement)] == [0.1] * len(CELLS)


def test_a_forced_sweep_goes_on_where_its_lost_attempt_stopped(bench: Bench) -> None:
    bench.measured()
    claim, forced = bench.sweep()
    assert bench.again(claim, forced, CELLS[0], 0.2)
    bench.queue.expire(claim)
    bench.queue.do(reap_expired)
    second = bench.queue.run(claim.job_id)
    assert bench.begin(second) == forced
    with bench.queue.database.read() as session:
        todo = [cell for cell in CELLS if cell not in forced_cells(session, forced)]
    assert todo == CELLS[1:]
    assert all(bench.again(second, forced, cell, 0.2) for cell in todo)
    assert len(bench.rows(RetiredMeasurement)) == len(bench.rows(Measurement)) == len(CELLS)


def test_two_forced_sweeps_at_once_measure_each_cell_once_each(bench: Bench) -> None:
    bench.measured()
    sweeps = [bench.sweep(), bench.sweep()]

    def run(which: int) -> list[bool]:
        claim, sweep_id = sweeps[which]
        return [bench.again(claim, sweep_id, cell, 0.2 + which) for cell in CELLS]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, (0, 1))) == [[True] * len(CELLS)] * 2
    rows, retired = bench.rows(Measurement), bench.rows(RetiredMeasurement)
    assert (len(rows), len(retired)) == (len(CELLS), 2 * len(CELLS))
    everything = [row.calibration_weighted_error for row in [*rows, *retired]]
    assert sorted(everything) == [0.1] * len(CELLS) + [0.2] * len(CELLS) + [1.2] * len(CELLS)
    ids = [row.id for row in rows] + [row.measurement_id for row in retired]
    assert len(set(ids)) == 3 * len(CELLS)
    with bench.queue.database.read() as session:
        for claim, sweep_id in sweeps:
            assert forced_cells(session, sweep_id) == set(CELLS), "replaced by the other counts as done"
            assert count_own_cells(session, sweep_id) == len(CELLS)
            assert claim.attempt_id in {row.attempt_id for row in [*rows, *retired]}
    assert not bench.again(*sweeps[0], CELLS[0], 0.9), "it was measured and replaced"


def test_a_forced_sweep_and_one_that_is_not_at_once_lose_nothing(bench: Bench) -> None:
    plain, forced = bench.sweep(), bench.sweep()

    def record(which: int) -> list[bool]:
        claim, sweep_id = (plain, forced)[which]
        action = record_again if which else record_measurement
        return [bool(bench.queue.do(action, claim, **bench.values(sweep_id, cell, 0.1 + which))) for cell in CELLS]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(record, (0, 1)))
    assert [row.sweep_id for row in bench.rows(Measurement)] == [forced[1]] * len(CELLS)
    assert {row.sweep_id for row in bench.rows(RetiredMeasurement)} <= {plain[1]}


def test_a_cell_invalidated_in_a_forced_sweep_is_missing_for_it_too(bench: Bench) -> None:
    claim, forced = bench.sweep()
    for cell in CELLS:
        bench.again(claim, forced, cell)
    assert bench.invalidate(0, "h2").measurements == 1
    with bench.queue.database.read() as session:
        assert forced_cells(session, forced) == set(CELLS[1:])
    assert bench.again(claim, forced, CELLS[0])


# --- invalidation --------------------------------------------------------------------------------------------------


def test_an_invalidated_cell_is_missing_and_its_id_is_given_to_no_other(bench: Bench) -> None:
    sweep_id = bench.measured()
    largest = bench.rows(Measurement)[-1]
    assert bench.invalidate(1, "h3").measurements == 1
    (retired,) = bench.rows(RetiredMeasurement)
    assert (retired.measurement_id, retired.reason, retired.replaced_by_sweep_id) == (largest.id, "a broken fan", None)
    claim, _ = bench.sweep()
    assert bench.queue.do(record_measurement, claim, **bench.values(sweep_id, CELLS[-1], 0.2))
    again = bench.rows(Measurement)[-1]
    assert again.calibration_weighted_error == 0.2
    assert again.id > largest.id


def test_a_dry_run_tells_and_writes_nothing(bench: Bench) -> None:
    bench.measured()
    fit = bench.fit(CELLS)
    found = bench.invalidate(0, "h2", dry_run=True)
    assert (found.measurements, list(found.affected.fits)) == (1, [fit])
    assert (bench.rows(RetiredMeasurement), bench.stale()) == ([], {})
    assert len(bench.rows(Measurement)) == len(CELLS)


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_who_stores_and_who_retires_wait_for_each_other(bench: Bench) -> None:
    """A fit that is not committed yet cannot be missed (SQLite has one writer at a time anyway)."""
    bench.measured()
    ids = [row.id for row in bench.rows(Measurement)]
    done = threading.Event()
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")

    def retire() -> None:
        bench.invalidate(0, "h2")
        done.set()

    with ThreadPoolExecutor(1) as pool:
        with bench.queue.database.write() as session:
            hold_measured(session, [bench.calibration_id], alone=False)
            fit = bench.fit_row(CELLS)
            session.add(fit)
            session.flush()
            retiring = pool.submit(retire)
            with bench.queue.database.read() as watch:
                # until the other stands still before our lock
                while not watch.scalar(waiting) and not done.is_set():
                    done.wait(0.01)
            assert not done.is_set()
            notice_retired(session, bench.calibration_id, ids)
        retiring.result(timeout=60)
    assert set(bench.stale()) == {fit.id}
