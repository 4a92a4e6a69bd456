"""Measurements that count no more: who may retire them, what takes their place, and what is marked with them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from results_db.errors import LeaseLost
from results_db.ids import new_id
from results_db.queue.lease import Claim, reap_expired
from results_db.recording import count_own_cells, record_calibration, record_measurement, record_sweep
from results_db.retire import (
    Retired,
    count_replaced,
    forced_cells,
    hold_measured,
    invalidate,
    notice_retired,
    record_again,
)
from results_db.stale import stale_evidence, stale_inputs
from results_db.states import JobKind
from results_db.tables import (
    Allocation,
    AllocationItem,
    Fit,
    Gate,
    Job,
    Measurement,
    Model,
    RetiredMeasurement,
    Study,
)

CPU = {"numerics_version": 1, "device_kind": "cpu"}
#: two configs on one matrix of each of two layers
CELLS = [(layer, "q", -1, f"h{b_q}") for layer in (0, 1) for b_q in (2, 3)]


class Bench:
    """One calibrated model, and sweeps that tests record by hand."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        with queue.database.write() as session:
            session.add(Model(id="mod_1", name="tiny", source="x"))
        values = CPU | {"model_id": "mod_1", "n_samples": 1, "sample_length": 8, "n_tokens": 8, "seed": 0}
        values |= {"token_hash": "t", "text": {}, "seconds": 0.1, "content_hash": "c"}
        maker = queue.run(queue.submit(JobKind.CALIBRATE))
        self.calibration_id = queue.do(record_calibration, maker, uri="file", nbytes=1, **values)

    def sweep(self, **options: Any) -> tuple[Claim, str]:
        """A running sweep job and its sweep's id."""
        claim = self.queue.run(self.queue.submit(JobKind.SWEEP, **options))
        return claim, self.begin(claim)

    def begin(self, claim: Claim) -> str:
        values = {"model_id": "mod_1", "calibration_id": self.calibration_id, "configs": [{}]}
        more = {"config_hashes": ["h2", "h3"], "clamped": [], "n_cells": len(CELLS)}
        return str(self.queue.do(record_sweep, claim, **values, **more))

    def values(self, sweep_id: str, cell: tuple[int, str, int, str], error: float = 0.1) -> dict[str, Any]:
        layer, projection, expert, config_hash = cell
        b_q = int(config_hash[1:])
        row = {"layer_idx": layer, "projection": projection, "expert_idx": expert, "config_hash": config_hash}
        row |= {"model_id": "mod_1", "calibration_id": self.calibration_id, "sweep_id": sweep_id, "b_q": b_q}
        row |= {"config": {"b_q": b_q}, "rank": 0, "factor_bits_l": 4, "factor_bits_r": 4, "codebook": "e8"}
        row |= {"states": None, "seed": 0, "out_features": 8, "in_features": 8, "raw_mse": 0.1}
        row |= {"normalized_mse": 0.1, "calibration_weighted_error": error, "nbytes": 16, "bits_per_weight": 2.0}
        return row | {"seconds": 0.1, "residual_spectrum": {"ranks": [1], "captured": [0.3]}} | CPU

    def measured(self) -> str:
        """A sweep that has measured every cell; its id."""
        claim, sweep_id = self.sweep()
        for cell in CELLS:
            self.queue.do(record_measurement, claim, **self.values(sweep_id, cell))
        return sweep_id

    def again(self, claim: Claim, sweep_id: str, cell: tuple[int, str, int, str], error: float = 0.1, **o: Any) -> bool:
        return bool(self.queue.do(record_again, claim, **(self.values(sweep_id, cell, error) | o)))

    def invalidate(self, layer: int, config_hash: str, **options: Any) -> Retired:
        where = (Measurement.layer_idx == layer) & (Measurement.config_hash == config_hash)
        return self.queue.do(invalidate, where, "a broken fan", **options)  # type: ignore[no-any-return]

    def rows(self, table: Any) -> list[Any]:
        with self.queue.database.read() as session:
            return list(session.scalars(select(table).order_by(table.id)))

    # --- what is computed from measurements

    def fit(self, cells: list[tuple[int, str, int, str]], *, codebook: str = "e8", job_id: str | None = None) -> str:
        residuals = [
            {"layer_idx": c[0], "projection": c[1], "expert_idx": c[2], "b_q": int(c[3][1:]), "rank": 0, "error": 0.1}
            for c in cells
        ]
        row = Fit(
            **{"id": new_id("fit"), "model_id": "mod_1", "calibration_id": self.calibration_id, "form": "additive"},
            **{"metric": "calibration_weighted_error", "codebook": codebook, "n_observations": len(cells), "r2": 1.0},
            **{"r2_log": 1.0, "r2_by_projection": {}, "r2_by_group": {}, "checks": {}, "seconds": 0.1},
            **{"residuals": [r | {"predicted": 0.1} for r in residuals], "job_id": job_id},
        )
        return self._add(row)

    def allocation(self, chosen: list[tuple[int, str, int, str]], **values: Any) -> str:
        own = {"calibration_id": self.calibration_id, "kind": "optimal", "objective": "kl", "details": {}}
        row = Allocation(
            **{"id": new_id("alloc"), "model_id": "mod_1", "name": "a", "scope": "decoder", "matrix_bytes": 1},
            **{"fixed_bytes": 0, "total_bytes": 1, "bits_per_weight": 2.0, "n_distinct_configs": 1},
            **{"content_hash": new_id("h"), "overrides_yaml": "", "seconds": 0.1},
            **(own | values),
        )
        id_ = self._add(row)
        for layer, projection, expert, config_hash in chosen:
            key = {"layer_idx": layer, "projection": projection, "expert_idx": expert, "config_hash": config_hash}
            numbers = {"config": {}, "b_q": 2, "rank": 0, "nbytes": 16, "error": 0.1}
            self._add(AllocationItem(allocation_id=id_, **key, **numbers))
        return id_

    def gate(self, study_id: str, name: str, job_id: str) -> str:
        values = {"phase": 1, "question": "?", "verdict": "GO", "explanation": "so"}
        return self._add(Gate(id=new_id("gate"), study_id=study_id, job_id=job_id, name=name, **values))

    def study(self) -> str:
        values = {"name": "s", "model_id": "mod_1", "state": "running", "config": {}, "on_no_go": "stop"}
        return self._add(Study(id=new_id("study"), **values))

    def job(self, study_id: str, step: str, position: int, **values: Any) -> str:
        kind = step.split(":")[0]
        row = Job(id=new_id("job"), kind=kind, state="succeeded", study_id=study_id, step=step, position=position)
        for name, value in ({"params": {}} | values).items():
            setattr(row, name, value)
        return self._add(row)

    def _add(self, row: Any) -> str:
        with self.queue.database.write() as session:
            session.add(row)
            session.flush()
            return str(row.id)

    def stale(self) -> dict[str, str]:
        """Id → reason of everything that is marked."""
        rows = [row for table in (Fit, Allocation, Gate) for row in self.rows(table)]
        assert all((row.stale_at is None) == (row.stale_reason is None) for row in rows)
        return {row.id: row.stale_reason for row in rows if row.stale_at is not None}


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


# --- what stands on them -------------------------------------------------------------------------------------------


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
