"""How well a fit explains its measurements: R² on linear and on log error, overall and by group."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compress_core.errors import FitError
from compress_core.fit.observation import ObservationTable
from compress_core.matrix import ATTENTION_PROJECTIONS, MLP_PROJECTIONS


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


@dataclass(frozen=True, eq=False, slots=True)
class CrossValidation:
    """How a fit predicts what it has not seen, fold by fold."""

    #: "config": each (b_q, rank) from the others; "layer": each layer from the others and one anchor cell a matrix
    scheme: Literal["config", "layer"]
    r2_log_within: float | None
    rmse_log: float
    n_folds: int
    n_predicted: int
    #: measurements that no fold could predict: the rest was too little to fit or to reach them
    n_unpredictable: int
    #: of the predictions of what was left out, overall and by group
    quality: FitQuality
    #: (n,) log(measured / predicted) in the order of the observations given; NaN where nothing was predicted
    residuals: NDArray[np.float64]
    #: (n,) the fold that left an observation out, −1 for none
    fold: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the residuals."""
        return {
            "scheme": self.scheme,
            "r2_log_within": self.r2_log_within,
            "rmse_log": self.rmse_log,
            "n_folds": self.n_folds,
            "n_predicted": self.n_predicted,
            "n_unpredictable": self.n_unpredictable,
            "quality": self.quality.to_dict(),
        }


def _r2(residual: NDArray[np.float64], total: NDArray[np.float64]) -> float | None:
    variation = float((total**2).sum())
    return None if variation <= 1e-24 * max(len(total), 1) else 1 - float((residual**2).sum()) / variation


def _deviation(y: NDArray[np.float64], row: NDArray[np.int64]) -> NDArray[np.float64]:
    """y minus its mean within each matrix."""
    n = np.bincount(row)
    return y - (np.bincount(row, weights=y) / np.maximum(n, 1))[row]


def group_quality(
    y: NDArray[np.float64], predicted: NDArray[np.float64], deviation: NDArray[np.float64]
) -> GroupQuality:
    """Quality of log predictions of log errors ``y``, whose ``deviation`` is that from their matrix's mean."""
    # in units of the largest error, so that tiny errors do not count as no variation; a wild prediction stays finite
    e, p = np.exp(y - y.max()), np.exp(np.minimum(predicted - y.max(), 300.0))
    residual = y - predicted
    return GroupQuality(
        n=len(y),
        r2_linear=_r2(e - p, e - e.mean()),
        r2_log=_r2(residual, y - y.mean()),
        r2_log_within=_r2(residual, deviation),
        rmse_log=float(np.sqrt((residual**2).mean())),
    )


def fit_quality(table: ObservationTable, predicted: NDArray[np.float64]) -> FitQuality:
    """Quality overall and by group; a group without measurements is None.

    Args:
        predicted: (m,) log errors; what is NaN is left out. Deviations within matrices are from the mean of all.

    Raises:
        FitError: nothing is predicted.
    """
    known = np.isfinite(predicted)
    if not known.any():
        raise FitError("no measurement is predicted, so there is no quality to tell")
    projection = np.array([key.projection for key in table.matrices])[table.row]
    layer = np.array([key.layer_idx for key in table.matrices])[table.row]
    deviation = _deviation(table.y, table.row)
    layers = np.unique(layer)
    # an odd number of layers puts the middle one among the late
    late = layer >= layers[len(layers) // 2]

    def of(mask: NDArray[np.bool_]) -> GroupQuality | None:
        use = mask & known
        return group_quality(table.y[use], predicted[use], deviation[use]) if use.any() else None

    found = {p: of(projection == p) for p in (*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS)}
    return FitQuality(
        overall=group_quality(table.y[known], predicted[known], deviation[known]),
        by_projection={p: q for p, q in found.items() if q is not None},
        attention=of(np.isin(projection, ATTENTION_PROJECTIONS)),
        mlp=of(np.isin(projection, MLP_PROJECTIONS)),
        early=of(~late),
        late=of(late),
    )
