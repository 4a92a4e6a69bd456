"""Rows of the figures about what was concluded: sensitivities with intervals, fidelity, forms, clusters of layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from results_db.states import JobKind
from results_db.tables import Fit, Job, LayerFidelityRow, Model, SensitivityEstimate
from web.figures import Estimated, FittedForm, LayerFidelity, LayerGroups
from web.formatting import config_label
from web.queries.steps import first_of, results

_GROUPS = ("attention", "mlp", "early", "late")


def estimates(session: Session, model: Model, jobs: Iterable[Job]) -> list[Estimated]:
    """What the study's first sensitivity job concluded, by every method; of one text, one kind of device."""
    order = {name: number for number, name in enumerate(dict.fromkeys(m["projection"] for m in model.matrices))}
    rows = _newest(session, first_of(jobs, JobKind.SENSITIVITY))
    rows.sort(key=lambda row: (row.method, order.get(row.projection, 0), row.layer_idx, row.expert_idx))
    return [
        Estimated(
            row.layer_idx, row.projection, row.expert_idx, row.method, row.value, row.low, row.high, row.raw,
            row.own_weight, row.applies_to,
        )
        for row in rows
    ]  # fmt: skip


def fidelities(session: Session, jobs: Iterable[Job]) -> list[LayerFidelity]:
    """Of every layer, as the study's first sensitivity job asked for it."""
    job = first_of(jobs, JobKind.SENSITIVITY)
    if job is None or not job.params.get("fidelity"):
        return []
    rows = session.scalars(_fidelity(job).order_by(LayerFidelityRow.layer_idx, LayerFidelityRow.id)).all()
    last = {row.layer_idx: row for row in rows}
    return [
        LayerFidelity(
            row.layer_idx,
            config_label(row.config),
            row.cosine,
            row.cosine_se,
            row.relative_error,
            row.relative_error_se,
        )
        for row in last.values()
    ]


def sensitivity_counts(session: Session, job: Job | None) -> tuple[str, str]:
    """Versions of the two: how many rows there are, and the newest."""
    if job is None:
        return "", ""
    found = []
    for query, table in ((_estimates(job), SensitivityEstimate), (_fidelity(job), LayerFidelityRow)):
        rows = query.subquery()
        n, newest = session.execute(select(func.count(), func.max(rows.c.id))).one()
        found.append(f"{table.__tablename__}:{n}:{newest}" if n else "")
    return found[0], found[1]


def forms(session: Session, jobs: Iterable[Job]) -> list[FittedForm]:
    """The forms that were compared, those that could not be fitted among them."""
    fit = _fit(session, jobs)
    if fit is None:
        return []
    group = [fit]
    if fit.group_id is not None:
        group = list(session.scalars(select(Fit).where(Fit.group_id == fit.group_id).order_by(Fit.id)))
    by_form = {row.form: row for row in group}
    judged = {entry["form"]: entry for entry in fit.details.get("selection") or []}
    return [_form(form, by_form.get(form), judged.get(form, {})) for form in dict.fromkeys([*judged, *by_form])]


def clusters(session: Session, jobs: Iterable[Job]) -> list[LayerGroups]:
    """Groups of layers by their error profiles, as the fit found them: by level and shape, and by shape alone."""
    fit = _fit(session, jobs)
    found = (fit.details.get("clusters") if fit else None) or []
    return [
        LayerGroups(
            entry["basis"], tuple(tuple(group["layers"]) for group in entry["clusters"]), str(entry.get("reason") or "")
        )
        for entry in found
    ]


def _fit(session: Session, jobs: Iterable[Job]) -> Fit | None:
    ids = list(results(jobs, JobKind.FIT, "fit_id").values())
    return session.get(Fit, ids[-1]) if ids else None


def _form(form: str, fit: Fit | None, judged: dict[str, Any]) -> FittedForm:
    why = str(judged.get("reason") or "")
    if fit is None:
        return FittedForm(form=form, chosen=False, reason=why)
    held_out = (fit.cv.get("config") or {}).get("quality") or {}
    return FittedForm(
        form=form,
        chosen=fit.chosen,
        reason=why,
        # over the cells that every form could predict, where several were compared
        cv_error=judged.get("cv_rmse") or fit.cv_error,
        cv_layer_error=judged.get("cv_layer_rmse") or fit.cv_layer_error,
        r2_cv=fit.r2_by_group.get("cross_validated"),
        r2_linear=fit.r2,
        r2_log=fit.r2_log,
        r2_groups=tuple((held_out.get(name) or {}).get("r2_log_within") for name in _GROUPS),
        n_observations=fit.n_observations,
    )


def _newest(session: Session, job: Job | None) -> list[SensitivityEstimate]:
    if job is None:
        return []
    rows = session.scalars(_estimates(job).order_by(SensitivityEstimate.id)).all()
    last = {row.method: (row.token_hash, row.device_kind, row.job_id) for row in rows}
    return [row for row in rows if (row.token_hash, row.device_kind, row.job_id) == last[row.method]]


def _estimates(job: Job) -> Any:
    return select(SensitivityEstimate).where(
        SensitivityEstimate.model_id == job.params.get("model_id"),
        SensitivityEstimate.calibration_id == job.params.get("calibration_id"),
        SensitivityEstimate.method != "reanchored",
        SensitivityEstimate.method.in_(job.params.get("methods") or ["kl_anchor"]),
    )


def _fidelity(job: Job) -> Any:
    return select(LayerFidelityRow).where(
        LayerFidelityRow.model_id == job.params.get("model_id"),
        LayerFidelityRow.calibration_id == job.params.get("calibration_id"),
    )
