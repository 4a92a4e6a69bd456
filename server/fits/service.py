"""Fit an error model to measured rows. One function for the endpoint and for the job."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core.config import UNROTATED_CODEBOOKS
from compress_core.errors import FitError
from compress_core.fit import ErrorFit, ErrorObservation, fit_additive, fit_monotone
from compress_core.matrix import MatrixKey
from compress_core.version import NUMERICS_VERSION
from results_db.ids import new_id
from results_db.params import FitParams
from results_db.queries.measured import measured_cells
from results_db.tables import Fit, FitParameter, Measurement, Model
from server.kit.checks import check_calibration
from server.kit.rows import get_row

_FORMS = {"additive": fit_additive, "monotone": fit_monotone}
METRIC = "calibration_weighted_error"


@dataclass(frozen=True, eq=False, slots=True)
class FitDraft:
    """A computed fit that is not stored yet."""

    #: with the codebook named that was fitted
    params: FitParams
    calibration_id: str
    rows: Sequence[Measurement]
    fit: ErrorFit
    seconds: float


def observations(rows: Sequence[Measurement]) -> list[ErrorObservation]:
    """Measured rows as compress_core.fit takes them."""
    return [
        ErrorObservation(MatrixKey(m.layer_idx, m.projection, m.expert_idx), m.b_q, m.rank, getattr(m, METRIC))
        for m in rows
    ]


def compute_fit(session: Session, params: FitParams) -> FitDraft:
    """Fit under the calibration named, or the model's newest; the draft names the codebook and states it is about.

    Raises:
        NotFound, Problem: no such model or calibration.
        FitError: too little is measured, or more than one codebook or size of trellis fits what was asked; the
            message says what to measure or to name.
    """
    get_row(session, Model, params.model_id)
    calibration = check_calibration(session, params.model_id, params.calibration_id)
    where: dict[str, Any] = {
        "model_id": params.model_id,
        "calibration_id": calibration.id,
        "numerics_version": NUMERICS_VERSION,
    }
    rows = measured_cells(session, **where)
    params = _named(params, rows, calibration.id)
    rows = [m for m in rows if (m.codebook, m.states) == (params.codebook, params.states)]
    began = time.perf_counter()
    fit = _FORMS[params.form](observations(rows))
    return FitDraft(params, calibration.id, rows, fit, time.perf_counter() - began)


def _named(params: FitParams, rows: Sequence[Measurement], calibration_id: str) -> FitParams:
    """The params with the one codebook, and number of states, that they can mean.

    Errors of two codebooks, or of two sizes of trellis, are no repetitions of each other: one curve through both would
    be wrong for either.
    """
    measured = {(m.codebook, m.states) for m in rows}
    meant = {
        (codebook, states)
        for codebook, states in measured
        # a baseline is fitted where it is asked for by name; what is left as it is has no curve
        if (codebook not in UNROTATED_CODEBOOKS if params.codebook is None else codebook == params.codebook)
        and params.states in (None, states)
    }
    if len(meant) == 1:
        codebook, states = meant.pop()
        return params.model_copy(update={"codebook": codebook, "states": states})
    if meant:
        raise FitError(
            f"{_list(meant)} are measured under calibration {calibration_id}, and a fit is of one: name codebook "
            "and, for the trellis, states"
        )
    asked = [] if params.codebook is None else [f"codebook {params.codebook!r}"]
    asked += [] if params.states is None else [f"{params.states} states"]
    what = f"nothing is measured with {' and '.join(asked)}" if asked else "no codebook is measured"
    cure = f"name one that is ({_list(measured)})" if measured else "run a sweep first"
    raise FitError(f"{what} under calibration {calibration_id}: {cure}")


def _list(measured: Set[tuple[str, int | None]]) -> str:
    return ", ".join(sorted(f"{codebook} of {states} states" if states else codebook for codebook, states in measured))


def save_fit(session: Session, draft: FitDraft, *, job_id: str | None = None) -> Fit:
    """Store the fit with its parameters and residuals."""
    fit, quality, validation = draft.fit, draft.fit.quality, draft.fit.cross_validation
    overall = quality.overall
    if overall.r2_linear is None or overall.r2_log is None:
        raise FitError("the measured errors do not vary, so there is nothing to fit: measure more configs")
    groups = {name: getattr(quality, name) for name in ("attention", "mlp", "early", "late")}
    row = Fit(
        id=new_id("fit"),
        model_id=draft.params.model_id,
        calibration_id=draft.calibration_id,
        job_id=job_id,
        form=fit.form,
        metric=METRIC,
        codebook=draft.params.codebook,
        states=draft.params.states,
        n_observations=fit.n_observations,
        r2=overall.r2_linear,
        r2_log=overall.r2_log,
        r2_by_projection={name: q.r2_log_within for name, q in quality.by_projection.items()},
        # what a free scale per matrix cannot flatter
        r2_by_group={name: q and q.r2_log_within for name, q in groups.items()}
        | {
            "within_matrices": overall.r2_log_within,
            "cross_validated": validation and validation.r2_log_within,
        },
        cv_error=validation.rmse_log if validation else None,
        checks={check.name.replace(" > 0", "_positive"): check.passed for check in fit.checks},
        residuals=_residuals(draft),
        seconds=draft.seconds,
    )
    session.add(row)
    session.flush()
    for p in fit.parameters:
        error = p.standard_error if math.isfinite(p.standard_error) else None
        session.add(FitParameter(fit_id=row.id, name=p.name, value=p.value, standard_error=error))
    for key, scale in fit.scales.items():
        session.add(
            FitParameter(
                fit_id=row.id,
                name="s",
                layer_idx=key.layer_idx,
                projection=key.projection,
                expert_idx=key.expert_idx,
                value=scale,
            )
        )
    session.flush()
    return row


def describe_fit(session: Session, fit: Fit) -> dict[str, Any]:
    """The fit with its parameters."""
    rows = session.scalars(select(FitParameter).where(FitParameter.fit_id == fit.id).order_by(FitParameter.id)).all()
    return fit.as_dict() | {"parameters": [row.as_dict() for row in rows]}


def _residuals(draft: FitDraft) -> list[dict[str, Any]]:
    # residual = log(measured / predicted), NaN where nothing was measured to take a logarithm of
    return [
        {
            "layer_idx": m.layer_idx,
            "projection": m.projection,
            "expert_idx": m.expert_idx,
            "b_q": m.b_q,
            "rank": m.rank,
            "error": m.calibration_weighted_error,
            "predicted": float(m.calibration_weighted_error * np.exp(-residual)) if np.isfinite(residual) else None,
        }
        for m, residual in zip(draft.rows, draft.fit.residuals, strict=True)
    ]
