"""What a sweep measures, reuses and replaces: the handler itself, in this process, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from compress_core.checkpoint import open_checkpoint
from compress_core.errors import Interrupted
from compress_core.pack.layout import fixed_bytes
from results_db import Database
from results_db.clock import db_now, utc_now
from results_db.params import PARAMS, SweepParams
from results_db.queries.models import checkpoint_columns
from results_db.queries.parts import parts_of
from results_db.queue.lease import claim_attempt, finish_attempt, reap_expired
from results_db.queue.promote import promote_waiting
from results_db.queue.submit import submit_job
from results_db.retire import invalidate
from results_db.settings import Settings
from results_db.states import JobKind
from results_db.tables import Attempt, Fit, Measurement, Model, RetiredMeasurement, Sweep, Worker
from server.sweeps.service import describe_sweep, submit_sweep
from worker.artefacts import ArtefactStore
from worker.context import JobContext, Recorder
from worker.device import CPU, Device
from worker.progress import ProgressMeter
from worker.registry import handler_of
from worker.stop import StopRequest

CONFIGS = [{"b_q": b_q, "rank": 2, "codebook": "scalar", "iterations": 1} for b_q in (2, 3)]
#: of two layers
PROJECTIONS = ["k", "v"]
N_CELLS = 2 * len(PROJECTIONS) * len(CONFIGS)
#: computes on the CPU and is another kind of device all the same
OTHER = Device("other", "other", "cpu")


class Tired(ProgressMeter):
    """Stops the job after so many cells."""

    def __init__(self, patience: int | None) -> None:
        super().__init__(StopRequest())
        self.patience = patience

    def __call__(self, done: int, total: int, message: str) -> None:
        super().__call__(done, total, message)
        if self.patience is not None:
            self.patience -= 1
            if self.patience <= 0:
                raise Interrupted("enough for now")


class Hands:
    """A worker without a process."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings = database, settings
        with database.write() as session:
            worker = Worker(id="wrk_1", name="one", hostname="here", pid=1, device="cpu", device_kind="cpu", state="up")
            worker.heartbeat_at = utc_now()
            session.add(worker)

    def run(
        self, kind: JobKind, params: dict[str, Any], *, device: Device = CPU, patience: int | None = None
    ) -> dict[str, Any]:
        """The result of a new job."""
        with self.database.write() as session:
            job_id = submit_job(session, kind, params).id
        return self.work(job_id, device=device, patience=patience)

    def work(self, job_id: str, *, device: Device = CPU, patience: int | None = None) -> dict[str, Any]:
        """The result of a queued job."""
        with self.database.write() as session:
            newest = select(Attempt.id).where(Attempt.job_id == job_id).order_by(Attempt.number.desc()).limit(1)
            claim = claim_attempt(session, session.scalars(newest).one(), worker_id="wrk_1", lease_s=60)
        assert claim is not None
        progress = Tired(patience)
        store = ArtefactStore(self.settings.artefacts_url, self.settings.var_dir, check=progress.check)
        context = JobContext(claim, self.settings, device, Recorder(self.database, claim), progress, 4096, store)
        result = handler_of(JobKind(claim.kind))(PARAMS[JobKind(claim.kind)].model_validate(claim.params), context)
        with self.database.write() as session:
            finish_attempt(session, claim, result)
        return result

    def lose(self, job_id: str) -> None:
        """The worker of a running job is gone."""
        with self.database.write() as session:
            held = update(Attempt).where(Attempt.job_id == job_id, Attempt.state == "running")
            session.execute(held.values(lease_expires_at=db_now(-1.0)))
            assert len(reap_expired(session)) == 1

    def split(self, params: dict[str, Any], *, devices: tuple[Device, Device] = (CPU, CPU)) -> dict[str, Any]:
        """A sweep as the server splits it: its layers, each on its device, then the whole."""
        with self.database.write() as session:
            whole = submit_sweep(session, SweepParams(**params))
            parts = [part.id for part in parts_of(session, whole)]
        for part, device in zip(parts, devices, strict=True):
            self.work(part, device=device)
        with self.database.write() as session:
            promote_waiting(session)
        return self.work(whole.id)

    def rows(self, table: Any = Measurement) -> list[Any]:
        with self.database.read() as session:
            return list(session.scalars(select(table).order_by(table.id)))


@pytest.fixture
def hands(database: Database, database_url: str, tmp_path: Path, tiny_model: Path, text_path: Path) -> Hands:
    roots = (tiny_model.parent, text_path.parent)
    return Hands(database, Settings(database_url=database_url, var_dir=tmp_path / "var", model_roots=roots))


@pytest.fixture
def calibrated(hands: Hands, tiny_model: Path, text_path: Path) -> Callable[..., dict[str, Any]]:
    """Parameters of a sweep over the tiny model, calibrated as asked."""
    checkpoint = open_checkpoint(tiny_model)
    with hands.database.write() as session:
        columns = checkpoint_columns(checkpoint, fixed_bytes(checkpoint))
        session.add(Model(id="mod_1", name="tiny", source=str(tiny_model), **columns))

    def make(keep: str = "hessians") -> dict[str, Any]:
        text = {"kind": "file", "path": str(text_path)}
        params = {"model_id": "mod_1", "text": text, "windows": {"length": 32, "count": 8}, "keep": keep}
        made = hands.run(JobKind.CALIBRATE, params)
        ask = {"model_id": "mod_1", "calibration_id": made["calibration_id"], "configs": CONFIGS}
        return ask | {"matrices": {"projections": PROJECTIONS}}

    return make


def counts(result: dict[str, Any]) -> tuple[int, int, int]:
    return (result["recorded"], result["reused"], result.get("replaced", 0))


def numbers(rows: list[Any]) -> set[tuple[Any, ...]]:
    return {(r.layer_idx, r.projection, r.config_hash, r.calibration_weighted_error, r.raw_mse, r.nbytes) for r in rows}


def test_what_any_sweep_measured_is_reused(hands: Hands, calibrated: Callable[..., dict[str, Any]]) -> None:
    ask = calibrated()
    first = hands.run(JobKind.SWEEP, ask | {"matrices": {"layers": [1], "projections": ["v"]}})
    assert counts(first) == (2, 0, 0)
    # split over two kinds of devices: what was measured on the CPU is known to the part that runs there alone
    whole = hands.split(ask, devices=(OTHER, CPU))
    assert counts(whole) == (N_CELLS - 2, 2, 0)
    assert {row.device_kind for row in hands.rows() if row.layer_idx == 0} == {"other"}
    # one job on the CPU: the other device's cells are none of its own
    assert counts(hands.run(JobKind.SWEEP, ask)) == (N_CELLS // 2, N_CELLS // 2, 0)
    assert counts(hands.run(JobKind.SWEEP, ask)) == (0, N_CELLS, 0)
    rows = hands.rows()
    assert len(rows) == N_CELLS + N_CELLS // 2
    assert len(numbers(rows)) == N_CELLS, "equal arithmetic, equal numbers"
    assert hands.rows(RetiredMeasurement) == []


def test_one_pass_without_stored_hessians_reuses_too(hands: Hands, calibrated: Callable[..., dict[str, Any]]) -> None:
    ask = calibrated("tokens")
    one_layer = {"matrices": {"layers": [0], "projections": PROJECTIONS}, "configs": CONFIGS[:1]}
    assert counts(hands.run(JobKind.SWEEP, ask | one_layer)) == (2, 0, 0)
    assert counts(hands.run(JobKind.SWEEP, ask)) == (N_CELLS - 2, 2, 0)
    assert counts(hands.run(JobKind.SWEEP, ask)) == (0, N_CELLS, 0)
    before = numbers(hands.rows())
    assert counts(hands.run(JobKind.SWEEP, ask | {"force": True})) == (N_CELLS, 0, N_CELLS)
    assert numbers(hands.rows()) == before


def test_a_forced_sweep_that_is_killed_measures_each_cell_once(
    hands: Hands, calibrated: Callable[..., dict[str, Any]]
) -> None:
    ask = calibrated()
    hands.run(JobKind.SWEEP, ask)
    before = numbers(hands.rows())
    with hands.database.write() as session:
        residuals = [
            {"layer_idx": r.layer_idx, "projection": r.projection, "expert_idx": -1, "b_q": r.b_q, "rank": r.rank}
            | {"error": r.calibration_weighted_error}
            for r in hands.rows()
        ]
        fit = Fit(id="fit_1", model_id="mod_1", calibration_id=ask["calibration_id"], form="additive", metric="m")
        fit.codebook, fit.n_observations, fit.r2, fit.r2_log, fit.seconds = "scalar", N_CELLS, 1.0, 1.0, 0.1
        fit.r2_by_projection, fit.r2_by_group, fit.checks, fit.residuals = {}, {}, {}, residuals
        session.add(fit)
        forced = submit_job(session, JobKind.SWEEP, ask | {"force": True}).id
    with pytest.raises(Interrupted):
        hands.work(forced, patience=3)
    assert len(hands.rows(RetiredMeasurement)) == 3
    assert numbers(hands.rows()) == before, "nothing is missing meanwhile"
    hands.lose(forced)
    assert counts(hands.work(forced)) == (N_CELLS - 3, 3, N_CELLS)
    assert len(hands.rows(RetiredMeasurement)) == len(hands.rows()) == N_CELLS
    assert numbers(hands.rows()) == before
    assert hands.rows(Fit)[0].stale_at is None, "the same numbers, bit for bit"


def test_a_forced_sweep_is_split_like_any_other(hands: Hands, calibrated: Callable[..., dict[str, Any]]) -> None:
    ask = calibrated()
    hands.run(JobKind.SWEEP, ask)
    result = hands.split(ask | {"force": True})
    assert counts(result) == (N_CELLS, 0, N_CELLS)
    assert {row.sweep_id for row in hands.rows()} == {result["sweep_id"]}
    with hands.database.read() as session:
        sweeps = session.scalars(select(Sweep).order_by(Sweep.id)).all()
        assert [describe_sweep(session, sweep)["n_recorded"] for sweep in sweeps] == [N_CELLS, N_CELLS]


def test_a_cell_invalidated_while_its_sweep_runs_is_measured_by_the_next(
    hands: Hands, calibrated: Callable[..., dict[str, Any]]
) -> None:
    ask = calibrated()
    with hands.database.write() as session:
        job_id = submit_job(session, JobKind.SWEEP, ask).id
    with pytest.raises(Interrupted):
        hands.work(job_id, patience=4)
    bad = hands.rows()[0]
    with hands.database.write() as session:
        assert invalidate(session, Measurement.id == bad.id, "the fan stood still").measurements == 1
    hands.lose(job_id)
    # the attempt that goes on plans from what is there: the cell is missing, and measured again
    assert counts(hands.work(job_id)) == (N_CELLS - 3, 3, 0)
    with hands.database.write() as session:
        assert invalidate(session, Measurement.layer_idx == 0, "again").measurements == N_CELLS // 2
    assert counts(hands.run(JobKind.SWEEP, ask)) == (N_CELLS // 2, N_CELLS // 2, 0)
    assert len(hands.rows()) == N_CELLS
    assert bad.id not in {row.id for row in hands.rows()}
