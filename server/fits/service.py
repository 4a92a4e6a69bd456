"""Fit error models to measured rows. One function for the endpoint and for the job."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sqlalchemy.orm import Session

from compress_core.analyze import GateThresholds, cluster_layers
from compress_core.errors import FitError
from compress_core.fit import (
    ErrorFit,
    ErrorObservation,
    FormSelection,
    Spectra,
    error_profiles,
    fit_form,
    read_spectrum,
    select_form,
)
from compress_core.matrix import MatrixKey
from compress_core.version import NUMERICS_VERSION
from results_db.params import FitParams
from results_db.queries.measured import measured_cells
from results_db.tables import Measurement, Model
from server.fits.menus import named
from server.kit.checks import check_calibration
from server.kit.rows import get_row

METRIC = "calibration_weighted_error"


@dataclass(frozen=True, eq=False, slots=True)
class FitDraft:
    """Computed fits of one codebook that are not stored yet: one form, or all that were compared."""

    #: with the codebook, states and factor bits named that were fitted
    params: FitParams
    calibration_id: str
    rows: Sequence[Measurement]
    #: by form
    fits: dict[str, ErrorFit]
    chosen: str
    #: the best parametric form, chosen or not
    parametric: str | None
    #: the parametric forms fall short and interpolation takes their place
    fallback: bool
    #: about all of them: the selection with its reasons, clusters of layers
    details: dict[str, Any]
    seconds: float


def observations(rows: Sequence[Measurement]) -> list[ErrorObservation]:
    """Measured rows as compress_core.fit takes them."""
    return [ErrorObservation(_key(m), m.b_q, m.rank, getattr(m, METRIC)) for m in rows]


def spectra(rows: Sequence[Measurement]) -> Spectra:
    """The residual spectra that measurements of rank 0 carry."""
    return {(_key(m), m.b_q): read_spectrum(m.residual_spectrum) for m in rows if m.residual_spectrum is not None}


def _key(row: Measurement) -> MatrixKey:
    return MatrixKey(row.layer_idx, row.projection, row.expert_idx)


def compute_fit(
    session: Session,
    params: FitParams,
    *,
    thresholds: GateThresholds | None = None,
    interpolate: Literal["where it falls short", "never"] = "never",
) -> FitDraft:
    """Fit under the calibration named, or the model's newest; the draft names what it is about.

    Form "auto" fits all four and chooses by cross-validation.

    Args:
        thresholds: whose R² a parametric form must exceed; default: the plan's.
        interpolate: whether a form that was named gives way to interpolation too.

    Raises:
        NotFound, Problem: no such model or calibration.
        FitError: too little is measured, or more than one codebook, size of trellis or bits of the factors fits what
            was asked; the message says what to measure or to name.
    """
    get_row(session, Model, params.model_id)
    calibration = check_calibration(session, params.model_id, params.calibration_id)
    where: dict[str, Any] = {
        "model_id": params.model_id,
        "calibration_id": calibration.id,
        "numerics_version": NUMERICS_VERSION,
    }
    params, rows = named(params, measured_cells(session, **where), calibration.id)
    needed = (thresholds or GateThresholds()).fit_r2
    began = time.perf_counter()
    cells, of_residuals = observations(rows), spectra(rows)
    if params.form == "auto":
        found = select_form(cells, spectra=of_residuals, needed_r2=needed)
    else:
        found = _named_form(params.form, cells, of_residuals, needed, interpolate == "where it falls short")
    overall = found.best.quality.overall
    if overall.r2_linear is None or overall.r2_log is None:
        raise FitError("the measured errors do not vary, so there is nothing to fit: measure more configs")
    details = {
        "selection": [judged.to_dict() for judged in found.judged],
        "needed_r2": needed,
        "fallback": found.fallback,
        "clusters": list(_clusters(cells)),
        # measurements that differ in what no form knows of are averaged: say what was mixed
        "mixed": {
            name: values
            for name in ("seed", "iterations")
            if len(values := sorted({int(m.config[name]) for m in rows if m.rank})) > 1
        },
    }
    seconds = time.perf_counter() - began
    chosen, parametric = found.chosen, found.parametric
    return FitDraft(params, calibration.id, rows, found.fits, chosen, parametric, found.fallback, details, seconds)


def _named_form(
    form: str, cells: Sequence[ErrorObservation], of_residuals: Spectra, needed: float, interpolate: bool
) -> FormSelection:
    """The form that was asked for, and interpolation in its place where it falls short and that is wanted."""
    fit = fit_form(form, cells, of_residuals)
    if form == "monotone":
        return FormSelection({form: fit}, form, None, False, ())
    validation = fit.cross_validation
    r2 = validation.r2_log_within if validation else fit.quality.overall.r2_log_within
    if not interpolate or (r2 is not None and r2 > needed):
        return FormSelection({form: fit}, form, form, False, ())
    return FormSelection({form: fit, "monotone": fit_form("monotone", cells)}, "monotone", form, True, ())


def _clusters(cells: Sequence[ErrorObservation]) -> Iterator[dict[str, Any]]:
    """Groups of layers by level and shape, and by shape alone; one that cannot be made says why."""
    profiles = error_profiles(cells)
    for shape_only in (False, True):
        try:
            yield cluster_layers(profiles, shape_only=shape_only).to_dict()
        except FitError as error:
            basis = "shape" if shape_only else "level_and_shape"
            yield {"basis": basis, "k": None, "reason": str(error), "clusters": [], "scores": [], "columns": []}


def residuals(draft: FitDraft, fit: ErrorFit) -> list[dict[str, Any]]:
    """Measured and predicted error of every row; predicted is null where the error is zero."""
    # residual = log(measured / predicted), NaN where there was nothing to take a logarithm of
    return [
        {
            "layer_idx": m.layer_idx,
            "projection": m.projection,
            "expert_idx": m.expert_idx,
            "b_q": m.b_q,
            "rank": m.rank,
            "error": m.calibration_weighted_error,
            "predicted": float(m.calibration_weighted_error * np.exp(-residual)) if math.isfinite(residual) else None,
        }
        for m, residual in zip(draft.rows, fit.residuals, strict=True)
    ]
