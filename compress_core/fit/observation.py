"""ErrorObservation: one measured error, and the checked arrays that the fits work on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from compress_core.errors import FitError, NonFiniteValues
from compress_core.matrix import MatrixKey


@dataclass(frozen=True, slots=True)
class ErrorObservation:
    """E_i(b, r) as measured, with a weight (1/variance of the log error, up to a common factor)."""

    matrix: MatrixKey
    b_q: int
    rank: int
    error: float
    weight: float = 1.0


@dataclass(frozen=True, eq=False, slots=True)
class ObservationTable:
    """Observations as arrays of one length m; those with zero error are left out (log has no room for them).

    ``y`` log error; ``row`` index into ``matrices``; ``bits`` b_q; ``log_rank`` ln(rank + 1).
    """

    matrices: tuple[MatrixKey, ...]
    row: NDArray[np.int64]
    bits: NDArray[np.float64]
    rank: NDArray[np.int64]
    y: NDArray[np.float64]
    weight: NDArray[np.float64]
    #: position of each entry among the observations given
    source: NDArray[np.int64]
    #: matrices whose every error is zero (a zero weight, say): their scale is zero
    zero_matrices: tuple[MatrixKey, ...]
    n_given: int

    @property
    def log_rank(self) -> NDArray[np.float64]:
        return np.log1p(self.rank)

    @property
    def n_zero(self) -> int:
        """Observations left out for their zero error."""
        return self.n_given - len(self.y)

    @classmethod
    def collect(cls, observations: Iterable[ErrorObservation]) -> Self:
        """Check and gather.

        Raises:
            FitError: nothing to fit.
            NonFiniteValues: an error is NaN, infinite or negative, or a weight is not positive.
        """
        given = list(observations)
        for o in given:
            if not (math.isfinite(o.error) and o.error >= 0):
                raise NonFiniteValues(f"the error of matrix {o.matrix} at b_q {o.b_q}, rank {o.rank} is {o.error}")
            if not (math.isfinite(o.weight) and o.weight > 0):
                raise NonFiniteValues(f"the weight of matrix {o.matrix} at b_q {o.b_q}, rank {o.rank} is {o.weight}")
        source = [i for i, o in enumerate(given) if o.error > 0]
        if not source:
            raise FitError("no measurement with a positive error: run a sweep before fitting")
        used = [given[i] for i in source]
        matrices = tuple(sorted({o.matrix for o in used}))
        index = {key: i for i, key in enumerate(matrices)}
        return cls(
            matrices=matrices,
            row=np.array([index[o.matrix] for o in used], dtype=np.int64),
            bits=np.array([o.b_q for o in used], dtype=np.float64),
            rank=np.array([o.rank for o in used], dtype=np.int64),
            y=np.log([o.error for o in used]),
            weight=np.array([o.weight for o in used]),
            source=np.array(source, dtype=np.int64),
            zero_matrices=tuple(sorted({o.matrix for o in given} - set(matrices))),
            n_given=len(given),
        )

    def require(self, *, cells: int, bits: int, ranks: int, form: str) -> None:
        """Refuse a table that cannot tell the parameters of a form apart.

        Raises:
            FitError: names what has to be measured.
        """
        for what, have, need in (
            ("values of b_q", np.unique(self.bits), bits),
            ("ranks", np.unique(self.rank), ranks),
        ):
            if len(have) < need:
                only = ", ".join(str(int(v)) for v in have)
                raise FitError(f"the {form} fit needs at least {need} {what}, but only {only} is measured")
        measured = {(b, r) for b, r in zip(self.bits.tolist(), self.rank.tolist(), strict=True)}
        if len(measured) < cells:
            raise FitError(
                f"the {form} fit needs at least {cells} different configs (b_q, rank), but {len(measured)} are measured"
            )


def by_config(observations: Sequence[ErrorObservation]) -> dict[tuple[int, int], list[int]]:
    """Positions of the observations of each (b_q, rank)."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, o in enumerate(observations):
        groups.setdefault((o.b_q, o.rank), []).append(i)
    return dict(sorted(groups.items()))
