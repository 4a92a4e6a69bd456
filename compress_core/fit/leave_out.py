"""Cross-validation: what a fit says of configs, and of layers, that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from compress_core.errors import FitError
from compress_core.fit.error_fit import ErrorFit
from compress_core.fit.observation import ErrorObservation, ObservationTable, by_config
from compress_core.fit.quality import CrossValidation, fit_quality
from compress_core.matrix import MatrixKey

AnyFit = TypeVar("AnyFit", bound=ErrorFit)
Refit = Callable[[Sequence[ErrorObservation]], ErrorFit]
#: of a deeper model so many layers are left out, evenly spread
MOST_LAYER_FOLDS = 20


def cross_validated(fit: AnyFit, observations: Sequence[ErrorObservation], refit: Refit) -> AnyFit:
    """The fit with both of its cross-validations attached."""
    return fit.validated(leave_one_config_out(observations, refit), leave_one_layer_out(observations, refit))


def leave_one_config_out(observations: Sequence[ErrorObservation], refit: Refit) -> CrossValidation | None:
    """Predict every config from the others. None where no config could be predicted."""
    return _cross_validate("config", observations, list(by_config(observations).values()), refit)


def leave_one_layer_out(observations: Sequence[ErrorObservation], refit: Refit) -> CrossValidation | None:
    """Predict every layer from the others and one measured anchor cell a matrix.

    The anchor is the matrix's coarsest measured config (fewest bits, of those the least rank): it gives s_i and nothing
    else; all other cells of the layer are predicted. A form that takes residual spectra keeps the layer's own, at all
    bits: its figure is that of a layer whose spectra are known. Of more than ``MOST_LAYER_FOLDS`` layers evenly spread
    ones are left out. None where there are fewer than two layers, or nothing could be predicted.
    """
    layers = sorted({o.matrix.layer_idx for o in observations if o.error > 0})
    if len(layers) < 2:
        return None
    if len(layers) > MOST_LAYER_FOLDS:
        layers = [layers[i] for i in np.linspace(0, len(layers) - 1, MOST_LAYER_FOLDS).round().astype(int)]
    anchors = anchor_cells(observations)
    folds = []
    for layer in layers:
        held = [
            i
            for i, o in enumerate(observations)
            if o.matrix.layer_idx == layer and o.error > 0 and (o.b_q, o.rank) != anchors[o.matrix]
        ]
        folds.append(held)
    return _cross_validate("layer", observations, folds, refit)


def anchor_cells(observations: Iterable[ErrorObservation]) -> dict[MatrixKey, tuple[int, int]]:
    """The coarsest measured (b_q, rank) of each matrix."""
    anchors: dict[MatrixKey, tuple[int, int]] = {}
    for o in observations:
        if o.error > 0:
            cell = (o.b_q, o.rank)
            anchors[o.matrix] = min(anchors.get(o.matrix, cell), cell)
    return anchors


def _cross_validate(
    scheme: Literal["config", "layer"],
    observations: Sequence[ErrorObservation],
    folds: Sequence[Sequence[int]],
    refit: Refit,
) -> CrossValidation | None:
    """Refit without the observations of each fold and predict them."""
    predicted = np.full(len(observations), np.nan)
    fold = np.full(len(observations), -1)
    for number, held in enumerate(folds):
        out = set(held)
        wanted = [i for i in held if observations[i].error > 0]
        fold[wanted] = number
        try:
            fit = refit([o for i, o in enumerate(observations) if i not in out])
        except FitError:
            continue  # too little is left without this fold: counted as unpredictable
        for i in wanted:
            o = observations[i]
            try:
                value = fit.predict(o.matrix, o.b_q, o.rank)
            except FitError:
                continue  # the matrix was measured at this config only, or it lies outside the rest
            if value > 0:  # zero where all that is left of the matrix is zero: nothing to take a logarithm of
                predicted[i] = np.log(value)
    asked_for = fold >= 0
    known = asked_for & np.isfinite(predicted)
    if not known.any():
        return None
    table = ObservationTable.collect(observations)
    log_predicted: NDArray[np.float64] = np.where(known, predicted, np.nan)[table.source]
    quality = fit_quality(table, log_predicted)
    residuals = np.full(len(observations), np.nan)
    residuals[table.source] = table.y - log_predicted
    return CrossValidation(
        scheme=scheme,
        r2_log_within=quality.overall.r2_log_within,
        rmse_log=quality.overall.rmse_log,
        n_folds=len(folds),
        n_predicted=int(known.sum()),
        n_unpredictable=int((asked_for & ~known).sum()),
        quality=quality,
        residuals=residuals,
        fold=fold,
    )
