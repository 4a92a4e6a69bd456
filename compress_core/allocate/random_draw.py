"""One random choice within a band of bytes: a tilted draw, repaired to the band. It never looks at an error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: the tilt that turns every row to its largest option, whatever its other terms say
_STRONGEST_TILT = 1e7
_BISECTIONS = 80
#: rounds of filling and pairing before a draw is given up
_REPAIR_ROUNDS = 24
#: how strongly rows are held to their own target of bytes (drawn log-uniformly), in units of the Gumbel noise
_HOLD = (0.5, 60.0)
#: largest spread of the rows' targets, in units of a row's range of bytes
_SPREAD = 1.5


@dataclass(frozen=True, eq=False, slots=True)
class DrawTable:
    """What a draw looks at.

    ``nbytes`` (n, k) int64; ``available`` (n, k) bool; ``layers`` and ``projections`` (n,) integers that say which rows
    belong together.
    """

    nbytes: NDArray[np.int64]
    available: NDArray[np.bool_]
    layers: NDArray[np.int64]
    projections: NDArray[np.int64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """(n, k) bytes from 0, the row's smallest option, to 1, its largest."""
        low = np.where(self.available, self.nbytes, np.iinfo(np.int64).max).min(axis=1, keepdims=True)
        high = np.where(self.available, self.nbytes, -1).max(axis=1, keepdims=True)
        return np.where(self.available, (self.nbytes - low) / np.maximum(high - low, 1), 0.0)


def draw_choice(table: DrawTable, lowest: int, highest: int, rng: np.random.Generator) -> NDArray[np.int64] | None:
    """(n,) columns whose bytes are in lowest … highest, or None where this draw found none.

    The distribution. Each row prefers a share of bytes (0 its smallest option, 1 its largest) around a target t_i
    that depends on depth, layer, projection and the row itself, each with a weight drawn anew: some draws starve the
    early layers, some the down projections, some nothing in particular, so that draws differ from each other in whole
    groups of matrices and do not crowd around one mean as independent options would. Option j gets the score
    −h·(share_ij − t_i)² + 2·h·θ·share_ij + Gumbel noise, its maximum is taken (which is sampling in proportion to the
    exponential), and θ is found by bisection, for bytes rise with θ: the largest choice of at most ``highest`` bytes.
    Where that leaves more than the band unused, one row or two are moved, those with the best scores.
    """
    share = table.shares
    hold = float(np.exp(rng.uniform(*np.log(_HOLD))))
    target = 0.5 + _SPREAD * rng.uniform() * _group_preferences(table, rng)
    noise = rng.gumbel(size=share.shape)
    fixed = np.where(table.available, noise - hold * (share - target[:, None]) ** 2, -np.inf)
    rows = np.arange(len(share))

    def at(tilt: float) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
        scores = fixed + 2 * hold * tilt * share
        choice = scores.argmax(axis=1)
        return scores, choice, int(table.nbytes[rows, choice].sum())

    low, high = -_STRONGEST_TILT, _STRONGEST_TILT
    scores, choice, total = at(high)
    if total > highest:
        scores, choice, total = at(low)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            candidate = at(middle)
            if candidate[2] <= highest:
                low, (scores, choice, total) = middle, candidate
            else:
                high = middle
    return repair_choice(table, scores, choice, lowest, highest, rng)


def _group_preferences(table: DrawTable, rng: np.random.Generator) -> NDArray[np.float64]:
    """(n,) of variance about 1: a random mixture of a slope over depth and of effects of layer, projection and row."""
    _, layer = np.unique(table.layers, return_inverse=True)
    _, projection = np.unique(table.projections, return_inverse=True)
    n_layers = int(layer.max()) + 1
    depth = (layer - (n_layers - 1) / 2) / max(n_layers / 12**0.5, 1.0)
    parts = (
        depth * rng.choice((-1.0, 1.0)),
        rng.normal(size=n_layers)[layer],
        rng.normal(size=int(projection.max()) + 1)[projection],
        rng.normal(size=len(layer)),
    )
    weights = rng.dirichlet(np.ones(len(parts))) ** 0.5
    return np.asarray(sum(weight * part for weight, part in zip(weights, parts, strict=True)))


def repair_choice(
    table: DrawTable,
    scores: NDArray[np.float64],
    choice: NDArray[np.int64],
    lowest: int,
    highest: int,
    rng: np.random.Generator,
) -> NDArray[np.int64] | None:
    """Move rows until the bytes are in the band, giving up as little as possible of the ``scores`` (n, k).

    One row if one will do, else two, else one at random and again; None after some rounds without success.
    """
    choice = choice.copy()
    rows = np.arange(len(choice))
    for _ in range(_REPAIR_ROUNDS):
        total = int(table.nbytes[rows, choice].sum())
        if lowest <= total <= highest:
            return choice
        row, column = np.nonzero(table.available)
        moved = table.nbytes[row, column] - table.nbytes[row, choice[row]]
        # what the draw itself would give up by the move
        loss = scores[row, choice[row]] - scores[row, column]
        fits = np.flatnonzero((moved >= lowest - total) & (moved <= highest - total))
        if len(fits):
            best = fits[np.argmin(loss[fits])]
            choice[row[best]] = column[best]
            continue
        pair = _pair(row, moved, loss, lowest - total, highest - total)
        if pair is not None:
            for move in pair:
                choice[row[move]] = column[move]
            continue
        # neither one nor two moves: start again nearby
        kicked = rng.choice(len(row))
        choice[row[kicked]] = column[kicked]
    return None


def _pair(
    row: NDArray[np.int64], moved: NDArray[np.int64], loss: NDArray[np.float64], lowest: int, highest: int
) -> tuple[int, int] | None:
    """Two moves of different rows whose bytes add up to lowest … highest, of least loss among each one's next fits."""
    order = np.argsort(moved, kind="stable")
    ordered = moved[order]
    first = np.searchsorted(ordered, lowest - moved, side="left")
    last = np.searchsorted(ordered, highest - moved, side="right")
    best: tuple[float, int, int] | None = None
    # the cheap first moves first; a good pair is needed, not the best one
    for one in np.argsort(loss, kind="stable"):
        if best is not None and loss[one] >= best[0]:
            break
        others = order[first[one] : last[one]]
        others = others[row[others] != row[one]]
        if len(others):
            other = int(others[np.argmin(loss[others])])
            found = float(loss[one] + loss[other])
            if best is None or found < best[0]:
                best = (found, int(one), other)
    return None if best is None else best[1:]
