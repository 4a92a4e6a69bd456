"""How well a fit explains its measurements: R² on linear and on log error, overall and by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress_core.errors import FitError
from compress_core.fit.observation import ErrorObservation, ObservationTable, by_config
from compress_core.matrix import ATTENTION_PROJECTIONS, MLP_PROJECTIONS

if TYPE_CHECKING:
    from compress_core.fit.error_fit import ErrorFit


@dataclass(frozen=True, slots=True)
class GroupQuality:
    """R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)²; None where y does not vary.

    ``r2_linear`` and ``r2_log`` take ȳ over the whole group, so a free scale a matrix makes them look good for nothing.
    ``r2_log_within`` takes ȳ per matrix: what the form says about bits and rank alone. It is the one to judge by.
    """

    n: int
    r2_linear: float | None
    r2_log: float | None
    r2_log_within: float | None
    #: root mean square of log(measured / predicted)
    rmse_log: float


@dataclass(frozen=True, slots=True)
class FitQuality:
    overall: GroupQuality
    by_projection: dict[str, GroupQuality]
    attention: GroupQuality | None
    mlp: GroupQuality | None
    #: first and second half of the layers
    early: GroupQuality | None
    late: GroupQuality | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Leave one config out: each (b_q, rank) is predicted by a fit that has not seen it."""

    r2_log_within: float | None
    rmse_log: float
    n_folds: int
    n_predicted: int
    #: measurements that no fold could predict: the rest was too little to fit or to reach them
    n_unpredictable: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _r2(residual: NDArray[np.float64], total: NDArray[np.float64]) -> float | None:
    variation = float((total**2).sum())
    return None if variation <= 1e-24 * max(len(total), 1) else 1 - float((residual**2).sum()) / variation


def _deviation(y: NDArray[np.float64], row: NDArray[np.int64]) -> NDArray[np.float64]:
    """y minus its mean within each matrix."""
    n = np.bincount(row)
    return y - (np.bincount(row, weights=y) / np.maximum(n, 1))[row]


def group_quality(y: NDArray[np.float64], predicted: NDArray[np.float64], row: NDArray[np.int64]) -> GroupQuality:
    """Quality of log predictions of log errors ``y`` of the matrices ``row``."""
    e, p = np.exp(y), np.exp(predicted)
    residual = y - predicted
    return GroupQuality(
        n=len(y),
        # in units of the largest error, so that tiny errors do not count as no variation
        r2_linear=_r2((e - p) / e.max(), (e - e.mean()) / e.max()),
        r2_log=_r2(residual, y - y.mean()),
        r2_log_within=_r2(residual, _deviation(y, row)),
        rmse_log=float(np.sqrt((residual**2).mean())),
    )


def fit_quality(table: ObservationTable, predicted: NDArray[np.float64]) -> FitQuality:
    """Quality overall and by group; a group without measurements is None."""
    projection = np.array([key.projection for key in table.matrices])[table.row]
    layer = np.array([key.layer_idx for key in table.matrices])[table.row]
    layers = np.unique(layer)
    # an odd number of layers puts the middle one among the late
    late = layer >= layers[len(layers) // 2]

    def of(mask: NDArray[np.bool_]) -> GroupQuality | None:
        return group_quality(table.y[mask], predicted[mask], table.row[mask]) if mask.any() else None

    found = {p: of(projection == p) for p in (*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS)}
    return FitQuality(
        overall=group_quality(table.y, predicted, table.row),
        by_projection={p: q for p, q in found.items() if q is not None},
        attention=of(np.isin(projection, ATTENTION_PROJECTIONS)),
        mlp=of(np.isin(projection, MLP_PROJECTIONS)),
        early=of(~late),
        late=of(late),
    )


def leave_one_config_out(
    observations: Sequence[ErrorObservation], refit: Callable[[Sequence[ErrorObservation]], ErrorFit]
) -> CrossValidation | None:
    """Predict every config from the others. None where no config could be predicted."""
    given = [o for o in observations if o.error > 0]
    folds = by_config(given)
    predicted = np.full(len(given), np.nan)
    for held in folds.values():
        out = set(held)
        try:
            fit = refit([o for i, o in enumerate(given) if i not in out])
        except FitError:
            continue  # too little is left without this config: counted as unpredictable
        for i in held:
            o = given[i]
            try:
                predicted[i] = np.log(fit.predict(o.matrix, o.b_q, o.rank))
            except FitError:
                continue  # the matrix was measured at this config only, or it lies outside the rest
    known = np.isfinite(predicted)
    if not known.any():
        return None
    keys = {m: i for i, m in enumerate(sorted({o.matrix for o in given}))}
    row = np.array([keys[o.matrix] for o in given])
    y = np.log([o.error for o in given])
    residual = y[known] - predicted[known]
    return CrossValidation(
        r2_log_within=_r2(residual, _deviation(y, row)[known]),
        rmse_log=float(np.sqrt((residual**2).mean())),
        n_folds=len(folds),
        n_predicted=int(known.sum()),
        n_unpredictable=int((~known).sum()),
    )
