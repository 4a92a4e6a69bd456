"""Cells of an allocation problem: measured where there is a measurement, fitted where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compress_core.allocate.problem import Cell
from compress_core.config import CompressionConfig
from compress_core.errors import FitError
from compress_core.fit import ErrorFit
from compress_core.matrix import MatrixKey, MatrixSpec

CellKey = tuple[MatrixKey, str]


@dataclass(frozen=True, slots=True)
class FilledCells:
    """Every known cell, and which of them are predictions."""

    cells: dict[CellKey, Cell]
    #: filled by the fit
    fitted: frozenset[CellKey]
    #: neither measured nor within the fit's reach: not available to the allocation
    missing: frozenset[CellKey]


def fill_cells(
    specs: Sequence[MatrixSpec],
    menu: Sequence[CompressionConfig],
    measured: Mapping[CellKey, Cell],
    *,
    fit_of: Callable[[CompressionConfig], ErrorFit | None],
    nbytes_of: Callable[[CompressionConfig, int, int], int],
) -> FilledCells:
    """Complete a sweep's cells over matrices × menu. A measurement is never replaced (DESIGN §6).

    Args:
        measured: keyed by matrix and hash of the config as clamped to it.
        fit_of: the fit for a config; fits are made per codebook and factor bits, None where there is none.
        nbytes_of: exact bytes of (config, out, in), as the serialiser counts them.
    """
    cells: dict[CellKey, Cell] = {}
    fitted: set[CellKey] = set()
    missing: set[CellKey] = set()
    for spec in specs:
        for wanted in menu:
            config = wanted.clamped(spec.out_features, spec.in_features)
            key = (spec.key, config.config_hash)
            if key in measured:
                cells[key] = measured[key]
                continue
            fit = fit_of(config)
            if fit is None:
                missing.add(key)
                continue
            try:
                error = fit.predict(spec.key, config.b_q, config.rank)
            except FitError:
                missing.add(key)  # outside the fit's reach; the caller sees it in ``missing``
                continue
            cells[key] = Cell(error, nbytes_of(config, spec.out_features, spec.in_features))
            fitted.add(key)
    return FilledCells(cells, frozenset(fitted), frozenset(missing))
