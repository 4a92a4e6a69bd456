"""What stands on measurements that count no more is marked, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from results_db.recording import record_measurement
from results_db.retire import hold_measured, invalidate, notice_retired
from results_db.stale import stale_evidence, stale_inputs
from results_db.tables import Job, Measurement
from tests.results_db.bench import CELLS, Bench


@pytest.fixture
def bench(queue: Any) -> Bench:
    return Bench(queue)


def test_a_fit_is_stale_where_it_was_fitted_to_the_cell(bench: Bench) -> None:
    bench.measured()
    with_it, without = bench.fit(CELLS), bench.fit(CELLS[1:])
    other_codebook = bench.fit(CELLS, codebook="trellis")
    id_ = bench.rows(Measurement)[0].id
    found = bench.invalidate(0, "h2")
    assert found.affected.ids() == {"fits": [with_it], "allocations": [], "gates": []}
    assert bench.stale() == {with_it: f"measurement {id_} (layer 0, q, b_q 2, rank 0) was invalidated: a broken fan"}
    assert {without, other_codebook}.isdisjoint(bench.stale())


def test_a_fit_of_other_numbers_of_the_same_cell_stands(bench: Bench) -> None:
    """It was fitted to what another kind of device measured, or to what was there before."""
    claim, sweep_id = bench.sweep()
    bench.queue.do(record_measurement, claim, **bench.values(sweep_id, CELLS[0], 0.7))
    bench.fit(CELLS)
    bench.invalidate(0, "h2")
    assert bench.stale() == {}


def test_an_allocation_is_stale_where_it_chose_or_chose_from_the_cell(bench: Bench) -> None:
    bench.measured()
    first, *_, last = bench.rows(Measurement)
    known = {"until": last.id, "config_hashes": ["h2", "h3"]}
    chose_from = bench.allocation([CELLS[1]], details={"measured": known})
    older = bench.allocation([CELLS[1]], details={"measured": known | {"until": first.id - 1}})
    other_menu = bench.allocation([CELLS[1]], details={"measured": known | {"config_hashes": ["h3"]}})
    manual = bench.allocation([CELLS[0]], kind="manual", objective=None)
    given = {"kind": "uniform", "objective": None, "calibration_id": None}
    predicted = bench.allocation([CELLS[0]], **given, details={"prediction": {"calibration_id": bench.calibration_id}})
    elsewhere = bench.allocation([CELLS[0]], **given, details={"prediction": {"calibration_id": "cal_other"}})
    drawn = bench.allocation([CELLS[1]], kind="random", objective=None, details={"measured": known})
    before_this_was_kept = bench.allocation([CELLS[1]])
    bench.invalidate(0, "h2")
    assert set(bench.stale()) == {chose_from, manual, predicted, drawn, before_this_was_kept}
    assert {older, other_menu, elsewhere}.isdisjoint(bench.stale())
    with bench.queue.database.read() as session:
        told = stale_inputs(session, [None, older, manual])
    assert [row["allocation_id"] for row in told] == [manual]


def test_equal_numbers_measured_again_make_nothing_stale_and_others_do(bench: Bench) -> None:
    bench.measured()
    fit, allocation = bench.fit(CELLS), bench.allocation([CELLS[0]])
    claim, forced = bench.sweep()
    assert bench.again(claim, forced, CELLS[0], 0.1, seconds=9.0)
    assert bench.stale() == {}
    spectrum = {"ranks": [1, 2], "captured": [0.3, 0.4]}
    assert bench.again(claim, forced, CELLS[1], 0.1, residual_spectrum=spectrum)
    assert set(bench.stale()) == {fit}, "a fit alone looks at the spectrum"
    assert bench.again(claim, forced, CELLS[2], 0.1000001)
    assert set(bench.stale()) == {fit, allocation}
    assert bench.stale()[allocation].endswith(f"was measured again by sweep {forced}")


def test_numbers_that_a_forced_sweep_found_again_are_known_as_long_as_before(bench: Bench) -> None:
    bench.measured()
    known = {"until": bench.rows(Measurement)[-1].id, "config_hashes": ["h2"]}
    allocation = bench.allocation([CELLS[1]], details={"measured": known})
    by_the_clock = bench.allocation([CELLS[1]])
    for _ in range(2):
        claim, forced = bench.sweep()
        assert bench.again(claim, forced, CELLS[0], 0.1)
    assert bench.stale() == {}
    bench.invalidate(0, "h2")
    assert set(bench.stale()) == {allocation, by_the_clock}, "it was chosen from the numbers that are bad now"
    later = bench.allocation([CELLS[1]], details={"measured": known | {"config_hashes": ["h3"]}})
    assert bench.again(claim, forced, CELLS[0], 0.3)
    bench.invalidate(0, "h2")
    assert later not in bench.stale()


def test_the_first_reason_stays(bench: Bench) -> None:
    bench.measured()
    fit = bench.fit(CELLS)
    bench.invalidate(0, "h2")
    reason = bench.stale()[fit]
    bench.invalidate(1, "h3")
    assert bench.stale() == {fit: reason}


def test_gates_are_stale_where_they_look_at_the_sweep_or_at_what_was_made_from_stale_rows(bench: Bench) -> None:
    study = bench.study()
    claim, sweep_id = bench.sweep(study_id=study, step="sweep")
    for cell in CELLS:
        bench.queue.do(record_measurement, claim, **bench.values(sweep_id, cell))
    fitting = bench.job(study, "fit", 1)
    allocating = bench.job(study, "allocate:optimal", 2)
    takes = {"inputs": {"allocation_id": {"job": allocating, "key": "allocation_id"}}}
    packing = bench.job(study, "compress:optimal", 3, **takes)
    apart = bench.job(study, "sensitivity", 4)
    looks_at = {"sweep": {"sweep": claim.job_id}, "fit": {"fit": fitting}, "pack": {"pairs": {"a": packing}}}
    looks_at["apart"] = {"sensitivity": apart}
    jobs = {
        name: bench.job(study, f"gate:{name}", 5, params={"context": context}) for name, context in looks_at.items()
    }
    gates = {name: bench.gate(study, name, job) for name, job in jobs.items()}
    fit = bench.fit(CELLS, job_id=fitting)
    allocation = bench.allocation([CELLS[0]], job_id=allocating, study_id=study)
    bench.invalidate(0, "h2")
    found = bench.stale()
    assert set(found) == {fit, allocation, gates["sweep"], gates["fit"], gates["pack"]}
    assert found[gates["sweep"]].startswith("measurement ")
    assert found[gates["fit"]] == f"fit {fit} is stale: {found[fit]}"
    assert found[gates["pack"]] == f"allocation a ({allocation}) is stale: {found[allocation]}"
    with bench.queue.database.read() as session:
        evidence = {name: stale_evidence(session, session.get_one(Job, job)) for name, job in jobs.items()}
    assert evidence["pack"] == f"allocation {allocation} is stale: {found[allocation]}"
    assert evidence["apart"] is None
    assert evidence["sweep"] is None, "a gate that is decided anew looks at the cells as they are now"


def test_several_are_told_of_together(bench: Bench) -> None:
    bench.measured()
    fit = bench.fit(CELLS)
    first = bench.rows(Measurement)[0].id
    bench.queue.do(invalidate, Measurement.model_id == "mod_1", "a broken fan")
    told = f"measurement {first} (layer 0, q, b_q 2, rank 0) and 3 others were invalidated: a broken fan"
    assert bench.stale() == {fit: told}
    assert bench.rows(Measurement) == []


def test_what_was_computed_while_its_measurement_was_retired_is_stale_at_birth(bench: Bench) -> None:
    bench.measured()
    ids = [row.id for row in bench.rows(Measurement)]
    bench.invalidate(0, "h2")
    claim, forced = bench.sweep()
    bench.again(claim, forced, CELLS[1], 0.1)

    def store(session: Any, read: list[int]) -> None:
        hold_measured(session, [bench.calibration_id], alone=False)
        notice_retired(session, bench.calibration_id, read)

    late, unharmed = bench.fit(CELLS), bench.fit(CELLS[1:])
    bench.queue.do(store, ids)
    assert set(bench.stale()) == {late}, "the same numbers again harm nobody"
    bench.again(claim, forced, CELLS[2], 0.4)
    later = bench.fit(CELLS[2:])
    bench.queue.do(store, ids)
    assert set(bench.stale()) == {late, unharmed, later}
    assert bench.stale()[later].endswith(f"was measured again by sweep {forced}")
