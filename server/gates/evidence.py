"""The numbers behind the gates, collected from rows. None = not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from compress_core.allocate import layer_spread
from compress_core.allocate.anchor_row import anchor_of
from compress_core.analyze import Estimate, gain_from_nll
from compress_core.config import UNROTATED_CODEBOOKS
from compress_core.errors import FitError
from compress_core.fit import ErrorProfiles, error_profiles
from compress_core.version import NUMERICS_VERSION
from results_db.queries.measured import measured_cells, measured_sensitivities
from results_db.queries.parts import parts_of
from results_db.states import AttemptState
from results_db.tables import Allocation, Attempt, Compression, Evaluation, Fit, FitParameter, Job, Sweep, Validation
from server.allocations.weights import load_sensitivities, load_weights
from server.evaluations.service import paired
from server.fits.service import observations
from server.sweeps.service import recorded_cells


@dataclass(frozen=True, slots=True)
class Cells:
    """How far a sweep came."""

    expected: int
    measured: int
    lost_attempts: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """Looks rows up through the jobs that a gate's context names."""

    session: Session
    context: dict[str, Any]

    def sensitivity_spread(self) -> Estimate | None:
        """Most over least sensitive layer."""
        calibration_id = self._result("sensitivity").get("calibration_id")
        job = self._job("sensitivity")
        if calibration_id is None or job is None:
            return None
        model_id = job.params["model_id"]
        rows = measured_sensitivities(
            self.session, model_id=model_id, calibration_id=calibration_id, numerics_version=NUMERICS_VERSION
        )
        # of the very text that was concluded from: what its sequences share cancels between layers
        concluded_from = load_weights(self.session, model_id, calibration_id, "kl").token_hash
        anchors = [anchor_of(row) for row in rows if row.token_hash == concluded_from]
        try:
            spread = layer_spread(load_sensitivities(self.session, model_id, calibration_id), anchors)
        except FitError:
            return None  # fewer than two layers: there is nothing to compare, and the gate says "not measured"
        n = min(row.n_sequences for row in rows)
        # the reflected bootstrap interval need not hold the point
        return Estimate(spread.ratio, min(spread.low, spread.ratio), max(spread.high, spread.ratio), n)

    def gain_percent(self, reference: str, candidate: str) -> Estimate | None:
        """PPL gain of one evaluation over another in %, paired, by their jobs' ids."""
        a, b = (self._evaluation(job_id) for job_id in (reference, candidate))
        if a is None or b is None:
            return None
        found = paired(self.session, a, b).difference
        return gain_from_nll(found.estimate, found.low, found.high, n=found.n_windows)

    def optimum(self, pair: dict[str, str]) -> str:
        """The evaluate job of the optimum that is judged: the re-anchored one, where that is what the study keeps."""
        kept, first, uniform = (self._evaluation(pair.get(name)) for name in ("chosen", "optimal", "uniform"))
        others = [found.compression_id for found in (first, uniform) if found is not None]
        return pair["optimal"] if kept is None or kept.compression_id in others else pair["chosen"]

    def validations(self) -> dict[str, Validation]:
        """Checks of the choice that were made, by budget."""
        found = {}
        for label, job_id in self.context.get("validations", {}).items():
            if id_ := (self.session.get_one(Job, job_id).result or {}).get("validation_id"):
                found[label] = self.session.get_one(Validation, id_)
        return found

    def profiles(self) -> ErrorProfiles | None:
        """Errors of the sweep's matrices over its configs, the baselines apart."""
        sweep = self._sweep()
        if sweep is None:
            return None
        rows = measured_cells(
            self.session,
            model_id=sweep.model_id,
            calibration_id=sweep.calibration_id,
            numerics_version=NUMERICS_VERSION,
            config_hashes=sweep.config_hashes,
        )
        try:
            return error_profiles(observations([row for row in rows if row.codebook not in UNROTATED_CODEBOOKS]))
        except FitError:
            return None  # no positive error: the gate says "not measured"

    def cells(self) -> Cells | None:
        """What the sweep asked for and what is recorded."""
        sweep = self._sweep()
        if sweep is None:
            return None
        jobs = [sweep.job_id, *(part.id for part in parts_of(self.session, self.session.get_one(Job, sweep.job_id)))]
        lost = select(func.count()).where(
            Attempt.job_id.in_(jobs), Attempt.state.in_([AttemptState.LOST.value, AttemptState.FAILED.value])
        )
        measured = len(recorded_cells(self.session, sweep))
        return Cells(sweep.n_cells, measured, self.session.scalar(lost) or 0)

    def fit(self) -> Fit | None:
        """The study's fit, or the interpolation in its place where it fell short."""
        return self._fit("fallback_fit_id") or self._fit("fit_id")

    def refused_fit(self) -> Fit | None:
        """The best parametric form, where it fell short."""
        return self._fit("fit_id") if self._fit("fallback_fit_id") is not None else None

    def parametric_fit(self) -> Fit | None:
        """The best parametric form, whether the study goes by it or not."""
        return self._fit("parametric_fit_id")

    def parameters(self, fit: Fit) -> Sequence[FitParameter]:
        """The fit's common parameters and its projection types', without the scales."""
        query = select(FitParameter).where(FitParameter.fit_id == fit.id, FitParameter.layer_idx.is_(None))
        return self.session.scalars(query.order_by(FitParameter.id)).all()

    def _fit(self, name: str) -> Fit | None:
        id_ = self._result("fit").get(name)
        return None if id_ is None else self.session.get_one(Fit, id_)

    def allocation(self) -> Allocation | None:
        """The optimal allocation."""
        id_ = (self._result("optimal") | self._result("allocation")).get("allocation_id")
        return None if id_ is None else self.session.get_one(Allocation, id_)

    def recipe(self) -> Allocation | None:
        """The manual allocation."""
        id_ = self._result("recipe").get("allocation_id")
        return None if id_ is None else self.session.get_one(Allocation, id_)

    def compression(self) -> Compression | None:
        """The optimal allocation's packed model."""
        id_ = self._result("compression").get("compression_id")
        return None if id_ is None else self.session.get_one(Compression, id_)

    def _job(self, name: str) -> Job | None:
        id_ = self.context.get(name)
        return None if id_ is None else self.session.get_one(Job, id_)

    def _result(self, name: str) -> dict[str, Any]:
        job = self._job(name)
        return (job.result or {}) if job else {}

    def _evaluation(self, job_id: str | None) -> Evaluation | None:
        job = None if job_id is None else self.session.get_one(Job, job_id)
        id_ = (job.result or {}).get("evaluation_id") if job else None
        return None if id_ is None else self.session.get_one(Evaluation, id_)

    def _sweep(self) -> Sweep | None:
        job = self._job("sweep")
        if job is None:
            return None
        return self.session.scalar(select(Sweep).where(Sweep.job_id == job.id))
