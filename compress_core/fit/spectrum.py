"""ResidualSpectrum: how much of what Q leaves over a rank-r term can capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from compress_core.errors import FitError, NonFiniteValues
from compress_core.matrix import MatrixKey


@dataclass(frozen=True, slots=True)
class ResidualSpectrum:
    """ρ at some ranks: the share of tr(D H Dᵀ) of the rank-0 residual D = W − Q that its best rank-r term captures.

    Raises:
        NonFiniteValues: ranks do not rise from 1 or more, or shares do not rise within 0 … 1.
    """

    ranks: tuple[int, ...]
    captured: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.ranks or len(self.ranks) != len(self.captured):
            raise NonFiniteValues("a residual spectrum needs one share for each of its ranks")
        if self.ranks[0] < 0 or (np.diff(self.ranks) <= 0).any():
            raise NonFiniteValues(f"the ranks of a residual spectrum must rise from 0 or more, not {self.ranks}")
        shares = np.array(self.captured)
        # a share of 1 + 1e-7 is rounding
        if not np.isfinite(shares).all() or shares.min() < 0 or shares.max() > 1 + 1e-6 or (np.diff(shares) < 0).any():
            raise NonFiniteValues("the shares of a residual spectrum must rise within 0 … 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From ``{"ranks": […], "captured": […]}``, as measurements store it."""
        return cls(tuple(map(int, values["ranks"])), tuple(map(float, values["captured"])))

    def at(self, rank: int) -> float:
        """ρ(rank), linear in ln(rank + 1) between the recorded ranks; 0 at rank 0.

        Raises:
            FitError: the rank lies beyond the recorded ones.
        """
        if rank > self.ranks[-1]:
            raise FitError(f"rank {rank} lies beyond the residual spectrum, which is recorded up to {self.ranks[-1]}")
        known_ranks: Sequence[int] = self.ranks if self.ranks[0] == 0 else (0, *self.ranks)
        shares: Sequence[float] = self.captured if self.ranks[0] == 0 else (0.0, *self.captured)
        return min(float(np.interp(np.log1p(rank), np.log1p(known_ranks), shares)), 1.0)


#: the spectrum of each (matrix, b_q) that has one
Spectra = Mapping[tuple[MatrixKey, int], ResidualSpectrum]


def nearest_spectrum(spectra: Spectra, matrix: MatrixKey, b_q: int) -> ResidualSpectrum:
    """The matrix's spectrum at b_q, else at the nearest bits, of two equally near the fewer.

    Raises:
        FitError: no spectrum is recorded for the matrix.
    """
    if (matrix, b_q) in spectra:
        return spectra[matrix, b_q]
    bits = [b for key, b in spectra if key == matrix]
    if not bits:
        raise FitError(f"no residual spectrum is recorded for matrix {matrix}: sweep it at rank 0")
    return spectra[matrix, min(bits, key=lambda b: (abs(b - b_q), b))]
