"""Fits as rows: one a form, those that were compared under one group."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core.fit import ErrorFit
from results_db.ids import new_id
from results_db.retire import hold_measured, notice_retired
from results_db.tables import Fit, FitParameter
from server.fits.service import METRIC, FitDraft, residuals


def save_fit(session: Session, draft: FitDraft, *, job_id: str | None = None) -> dict[str, Fit]:
    """Store every form of the draft with its parameters and residuals; form → row.

    What was fitted to a measurement that was retired meanwhile is stale at birth.
    """
    hold_measured(session, [draft.calibration_id], alone=False)
    group = new_id("fgr") if len(draft.fits) > 1 else None
    # the chosen one last, so that it is the newest
    order = sorted(draft.fits, key=lambda form: form == draft.chosen)
    saved = {form: _save(session, draft, draft.fits[form], group, job_id) for form in order}
    notice_retired(session, draft.calibration_id, [row.id for row in draft.rows])
    return saved


def job_result(draft: FitDraft, rows: dict[str, Fit]) -> dict[str, Any]:
    """What a fit job tells of its rows.

    ``fit_id`` is the chosen form, or the parametric one that falls short; then ``fallback_fit_id`` is what takes its
    place. ``parametric_fit_id`` is the best parametric form, whose parameters can be judged.
    """
    first = draft.parametric if draft.fallback and draft.parametric is not None else draft.chosen
    result: dict[str, Any] = {"fit_id": rows[first].id, "form": first, "r2": rows[first].r2}
    if draft.parametric is not None:
        result["parametric_fit_id"] = rows[draft.parametric].id
    if draft.fallback:
        result["fallback_fit_id"] = rows[draft.chosen].id
    if rows[first].group_id is not None:
        result["group_id"] = rows[first].group_id
    return result


def describe_fit(session: Session, fit: Fit) -> dict[str, Any]:
    """The fit with its parameters."""
    rows = session.scalars(select(FitParameter).where(FitParameter.fit_id == fit.id).order_by(FitParameter.id)).all()
    return fit.as_dict() | {"parameters": [row.as_dict() for row in rows]}


def _save(session: Session, draft: FitDraft, fit: ErrorFit, group_id: str | None, job_id: str | None) -> Fit:
    by_config, by_layer, overall = fit.cross_validation, fit.layer_validation, fit.quality.overall
    groups = {name: getattr(fit.quality, name) for name in ("attention", "mlp", "early", "late")}
    row = Fit(
        id=new_id("fit"),
        model_id=draft.params.model_id,
        calibration_id=draft.calibration_id,
        job_id=job_id,
        form=fit.form,
        metric=METRIC,
        codebook=draft.params.codebook,
        states=draft.params.states,
        factor_bits_l=draft.params.factor_bits_l,
        factor_bits_r=draft.params.factor_bits_r,
        n_observations=fit.n_observations,
        r2=overall.r2_linear,
        r2_log=overall.r2_log,
        r2_by_projection={name: q.r2_log_within for name, q in fit.quality.by_projection.items()},
        # what a free scale per matrix cannot flatter
        r2_by_group={name: q and q.r2_log_within for name, q in groups.items()}
        | {
            "within_matrices": overall.r2_log_within,
            "cross_validated": by_config and by_config.r2_log_within,
        },
        cv_error=by_config and by_config.rmse_log,
        cv_layer_error=by_layer and by_layer.rmse_log,
        cv={"config": by_config and by_config.to_dict(), "layer": by_layer and by_layer.to_dict()},
        checks={check.name.replace(" > 0", "_positive"): check.passed for check in fit.checks},
        residuals=residuals(draft, fit),
        chosen=fit.form == draft.chosen,
        group_id=group_id,
        details=draft.details
        | dict(fit.details)
        | {
            "quality": fit.quality.to_dict(),
            "checks": [{"name": c.name, "passed": c.passed, "sure": c.sure, "detail": c.detail} for c in fit.checks],
        },
        seconds=draft.seconds,
    )
    session.add(row)
    session.flush()
    session.add_all(_parameters(row.id, fit))
    session.flush()
    return row


def _parameters(fit_id: str, fit: ErrorFit) -> list[FitParameter]:
    def number(x: float) -> float | None:
        return x if math.isfinite(x) else None

    found = [
        FitParameter(
            fit_id=fit_id,
            name=p.name,
            projection=p.projection,
            value=p.value,
            standard_error=number(p.standard_error),
            low=number(p.low),
            high=number(p.high),
        )
        for p in fit.parameters
    ]
    scales = [
        FitParameter(
            fit_id=fit_id,
            name="s",
            layer_idx=key.layer_idx,
            projection=key.projection,
            expert_idx=key.expert_idx,
            value=scale,
        )
        for key, scale in fit.scales.items()
    ]
    return found + scales
