"""What residual spectra say of a rank: ρ(r), the share of what Q leaves over that the best rank-r term captures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compress_core.errors import FitError, NonFiniteValues
from compress_core.matrix import MatrixKey
from compress_core.measurement import ResidualSpectrum

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


def read_spectrum(values: Mapping[str, Any]) -> ResidualSpectrum:
    """From ``{"ranks": […], "captured": […]}``, as measurements keep it.

    Raises:
        NonFiniteValues: ranks do not rise from 1 or more, or shares do not rise within 0 … 1.
    """
    spectrum = ResidualSpectrum(tuple(map(int, values["ranks"])), tuple(map(float, values["captured"])))
    ranks, shares = np.array(spectrum.ranks), np.array(spectrum.captured)
    if not len(ranks) or len(ranks) != len(shares) or ranks[0] < 1 or (np.diff(ranks) <= 0).any():
        raise NonFiniteValues(f"a residual spectrum needs a share for each of its ranks, which rise from 1: {values}")
    if not np.isfinite(shares).all() or shares.min() < 0 or shares.max() > 1 or (np.diff(shares) < 0).any():
        raise NonFiniteValues(f"the shares of a residual spectrum must rise within 0 … 1: {values}")
    return spectrum


def captured_at(spectrum: ResidualSpectrum, rank: int) -> float:
    """ρ(rank), linear in ln(rank + 1) between the recorded ranks; 0 at rank 0.

    Raises:
        FitError: the rank lies beyond the recorded ones.
    """
    if rank > spectrum.ranks[-1]:
        raise FitError(f"rank {rank} lies beyond the residual spectrum, which is recorded up to {spectrum.ranks[-1]}")
    return float(np.interp(np.log1p(rank), np.log1p((0, *spectrum.ranks)), (0.0, *spectrum.captured)))
