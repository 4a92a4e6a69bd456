"""Calibration: do predicted KLs of whole allocations rank, and size, the KLs that these really have?

The check of allocations at equal bytes (their spread over sizes would make any prediction look good). Two sources of
noise are resampled together: which allocations were tried, and which windows of text they were tried on. Torch-free.

The slope is that of ordinary least squares of log realised on log predicted, and not of an orthogonal fit: the question
is what a promised reduction of KL is worth, E[log realised | log predicted], and a predictor whose noise was selected
for must show a slope below 1. An orthogonal fit would assume equal noise on both axes and divide that effect out.

Shapes: A allocations, N windows, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit
from scipy.stats import rankdata

from compress_core.analyze.verdict import Estimate
from compress_core.errors import ConfigError

Array = NDArray[np.float64]

#: log-log slopes that count as calibrated
SLOPE_BAND = (0.8, 1.25)
#: and the standard deviation of log realised around the line up to which they do
RESIDUAL_SD = 0.15
#: fewest allocations that anything can be said of
FEWEST = 4
#: fewest whose point estimates say enough to measure sensitivities anew: of 4 that are predicted well half would fail
ENOUGH = 8
_RESAMPLES = 2000
#: entries of the resampled tables that are in memory at once
_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class CalibrationCheck:
    """How well joint KLs were predicted. What is not defined for the data is None."""

    #: distinct allocations with a prediction
    n: int
    #: rank correlation of predicted and realised KL
    spearman: Estimate | None = None
    #: of log realised over log predicted KL
    log_slope: Estimate | None = None
    #: log realised KL where log predicted KL is 0: the line's other parameter
    intercept: float | None = None
    #: geometric mean of realised / predicted
    kappa: Estimate | None = None
    #: standard deviation of log realised around the line
    residual_sd: Estimate | None = None
    #: True or False where the intervals decide, else None
    calibrated: bool | None = None
    #: whether the point estimates pass; None where there are none
    passes: bool | None = None
    #: allocations that would decide, if the estimates stay where they are; None where it is decided, or none would
    needed: int | None = None
    #: one sentence for people
    sentence: str = ""

    @property
    def failed(self) -> bool:
        """Worth a repair: the intervals say so, or the point estimates of ``ENOUGH`` allocations."""
        return self.calibrated is False or (self.passes is False and self.n >= ENOUGH)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def check_calibration(
    predicted_A: Array,
    realised_AN: Array,
    *,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> CalibrationCheck:
    """Compare predicted joint KLs with those realised on N windows of equal length.

    Args:
        predicted_A: nats a token; of distinct allocations.
        realised_AN: mean KL of each window, nats a token.

    Intervals are percentiles of a bootstrap over allocations and windows, expanded for few allocations (Hesterberg
    2015, "What teachers should know about the bootstrap", §4.4: a percentile interval of n values is too narrow by
    about √(n/(n−1))·t/z).

    Raises:
        ConfigError: shapes that do not match, fewer than two windows, or KLs that are negative or not finite.
    """
    x, y = np.asarray(predicted_A, dtype=np.float64), np.asarray(realised_AN, dtype=np.float64)
    if x.ndim != 1 or y.ndim != 2 or y.shape[0] != x.size or y.shape[1] < 2:
        raise ConfigError(f"a calibration check needs (A,) and (A, N ≥ 2) values; got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x >= 0).all() and (y >= 0).all()):
        raise ConfigError("a KL is a finite number of 0 or more, predicted or realised")
    usable = (x > 0) & (y.mean(axis=1) > 0)  # a logarithm of 0 says nothing
    x, y = x[usable], y[usable]
    if x.size < FEWEST:
        return CalibrationCheck(
            x.size, sentence=f"{x.size} allocations have a prediction: {FEWEST} or more are needed to check it."
        )
    if np.ptp(x) <= 1e-12 * x.max():
        return CalibrationCheck(x.size, sentence=f"All {x.size} allocations have one and the same predicted KL.")
    found = _statistics(x[None], y.mean(axis=1)[None])
    bands = _bands(x, y, confidence, resamples, seed)
    n = int(x.size)
    spearman, slope, kappa, spread = (
        _estimate(float(value[0]), band, n) for value, band in zip(found, bands, strict=True)
    )
    # the line goes through the means, between which lies log κ
    intercept = math.log(kappa.value) + (1 - slope.value) * float(np.log(x).mean())
    return _decided(CalibrationCheck(n, spearman, slope, intercept, kappa, spread))


@dataclass(frozen=True, slots=True)
class Optimism:
    """The winner's curse: how much worse the chosen allocation is than predicted, beside unchosen ones."""

    #: realised / predicted of the chosen allocation
    chosen: float
    #: geometric mean of realised / predicted of the others
    others: float
    #: standard deviation of log(realised / predicted) of the others
    others_sd: float
    #: chosen / others − 1: by this share the chosen one's KL exceeds what its like would have had
    gap: float
    #: bounds of the gap, from how the others scatter
    low: float
    high: float
    n_others: int


def optimism(
    predicted: float, realised: float, predicted_others: Sequence[float], realised_others: Sequence[float]
) -> Optimism | None:
    """The optimism gap of a chosen allocation; None with fewer than 3 others, or where a KL is 0.

    Selecting by a noisy prediction selects its errors. An interval above 0 says that it did; it is a prediction
    interval (t, over the others), because one more allocation like them would scatter as they do.
    """
    pairs = [(p, r) for p, r in zip(predicted_others, realised_others, strict=True) if p > 0 and r > 0]
    n = len(pairs)
    if n < 3 or predicted <= 0 or realised <= 0:
        return None
    logs = np.array([math.log(r / p) for p, r in pairs])
    own, mean, deviation = math.log(realised / predicted), float(logs.mean()), float(logs.std(ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * deviation * math.sqrt(1 + 1 / n)
    low, gap, high = (math.expm1(own - mean + shift) for shift in (-half, 0.0, half))
    return Optimism(math.exp(own), math.exp(mean), deviation, gap, low, high, n)


def near_bytes(nbytes: Sequence[int], within: float = 0.02) -> list[int]:
    """Numbers of the allocations whose bytes lie no more than ``within`` below the largest: those at equal bytes."""
    largest = max(nbytes, default=0)
    return [number for number, size in enumerate(nbytes) if size >= (1 - within) * largest]


# --- how it is computed


def _statistics(x_BA: Array, y_BA: Array) -> tuple[Array, Array, Array, Array]:
    """Spearman, slope, κ and residual standard deviation of each row, (B,); NaN where a row's x are all equal."""
    with np.errstate(invalid="ignore", divide="ignore"):
        spearman = _correlation(rankdata(x_BA, axis=1), rankdata(y_BA, axis=1))
        u, v = np.log(x_BA), np.log(y_BA)
        kappa = np.exp((v - u).mean(axis=1))
        u, v = u - u.mean(axis=1, keepdims=True), v - v.mean(axis=1, keepdims=True)
        slope = (u * v).sum(axis=1) / np.square(u).sum(axis=1)
        residual = np.square(v - slope[:, None] * u).sum(axis=1)
    return spearman, slope, kappa, np.sqrt(residual / (x_BA.shape[1] - 2))


def _correlation(a_BA: Array, b_BA: Array) -> Array:
    a, b = a_BA - a_BA.mean(axis=1, keepdims=True), b_BA - b_BA.mean(axis=1, keepdims=True)
    found: Array = (a * b).sum(axis=1) / np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return found


def _bands(x_A: Array, y_AN: Array, confidence: float, resamples: int, seed: int) -> list[tuple[float, float]]:
    """Expanded percentile intervals of the statistics."""
    rng = np.random.default_rng(seed)
    n, n_windows = y_AN.shape
    step = max(1, _AT_ONCE // max(n, n_windows))
    columns: list[list[Array]] = [[], [], [], []]
    for begin in range(0, resamples, step):
        count = min(step, resamples - begin)
        weights_BN = rng.multinomial(n_windows, np.full(n_windows, 1 / n_windows), size=count)
        y_BA = weights_BN @ y_AN.T / n_windows
        picks_BA = rng.integers(0, n, size=(count, n))
        found = _statistics(x_A[picks_BA], np.take_along_axis(y_BA, picks_BA, axis=1))
        for column, values in zip(columns, found, strict=True):
            column.append(values)
    # of n values a bootstrap sees a spread too small by √((n−1)/n), and quantiles of the normal, not of Student's t
    z = math.sqrt(n / (n - 1)) * float(stdtrit(n - 2, 0.5 + confidence / 2))
    levels = [float(ndtr(-z)), float(ndtr(z))]
    # resampled residuals are those of a line that was fitted to them: their spread is too small by √((n−2)/n)
    columns[3] = [values * math.sqrt(n / (n - 2)) for values in columns[3]]
    bands = []
    for column in columns:
        values = np.concatenate(column)
        low, high = np.quantile(values[np.isfinite(values)], levels)
        bands.append((float(low), float(high)))
    return bands


def _estimate(value: float, band: tuple[float, float], n: int) -> Estimate:
    """The percentiles of a skewed statistic may leave out the value itself: the interval is widened to it."""
    return Estimate(value, min(value, band[0]), max(value, band[1]), n)


def _decided(check: CalibrationCheck) -> CalibrationCheck:
    """With the verdict: the slope's and the spread's intervals against what counts as calibrated."""
    slope, spread, spearman, kappa = check.log_slope, check.residual_sd, check.spearman, check.kappa
    assert slope is not None
    assert spread is not None
    assert spearman is not None
    assert kappa is not None
    low, high = SLOPE_BAND
    passes = low <= slope.value <= high and spread.value <= RESIDUAL_SD
    calibrated: bool | None = None
    needed = None
    if slope.high < low or slope.low > high or spread.low > RESIDUAL_SD:
        calibrated = False
    elif low <= slope.low and slope.high <= high and spread.high <= RESIDUAL_SD:
        calibrated = True
    else:
        wanting = [
            _needed(slope, low if slope.value < 1 else high),
            _needed(slope, high if slope.value < 1 else low),
            _needed(spread, RESIDUAL_SD),
        ]
        decided = [count for count in wanting if count is not None and count > check.n]
        needed = max(decided, default=None)
    numbers = (
        f"Over {check.n} allocations predicted and realised KL have rank correlation {_range(spearman)}, log slope "
        f"{_range(slope)}, ratio {_range(kappa)} and residual spread {_range(spread)}"
    )
    verdict = {
        True: "the prediction is calibrated at this budget.",
        False: "the prediction is not calibrated at this budget: isolated errors do not add up here.",
        None: "whether the prediction is calibrated is not decided"
        + (f"; about {needed} allocations would decide." if needed else "."),
    }[calibrated]
    return replace(check, calibrated=calibrated, passes=passes, needed=needed, sentence=f"{numbers}: {verdict}")


def _needed(estimate: Estimate, threshold: float) -> int | None:
    """Allocations at which an interval that shrinks as 1/√n would no longer hold the threshold."""
    if not estimate.low <= threshold <= estimate.high:
        return None
    distance = abs(estimate.value - threshold)
    half = estimate.value - estimate.low if threshold < estimate.value else estimate.high - estimate.value
    if distance == 0 or not math.isfinite(half / distance) or half / distance > 100:
        return None
    return math.ceil(estimate.n * (half / distance) ** 2)


def _range(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} ({estimate.low:.3g} … {estimate.high:.3g})"
