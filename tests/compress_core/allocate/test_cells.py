"""Measured cells first, fitted ones where nothing is measured."""

from __future__ import annotations

from compress_core.allocate import AllocationProblem, Cell, fill_cells
from compress_core.config import CompressionConfig
from compress_core.fit import ErrorObservation, fit_monotone
from compress_core.matrix import MatrixKey, MatrixSpec

SPECS = (MatrixSpec(MatrixKey(0, "q"), 64, 64, "a"), MatrixSpec(MatrixKey(0, "k"), 16, 64, "b"))
MENU = tuple(CompressionConfig(b_q=b, rank=r) for b in (2, 3, 4) for r in (0, 32))


def nbytes_of(config: CompressionConfig, out: int, in_: int) -> int:
    return out * in_ * config.b_q // 8 + config.rank * (out + in_) // 2


def test_measured_stay_holes_are_fitted_the_rest_is_missing() -> None:
    measured = {}
    observations = []
    for spec in SPECS:
        for config in MENU:
            c = config.clamped(spec.out_features, spec.in_features)
            if (c.b_q, spec.key.projection) == (3, "q"):
                continue
            error = 4.0**-c.b_q / (1 + c.rank)
            measured[spec.key, c.config_hash] = Cell(error, 1)
            observations.append(ErrorObservation(spec.key, c.b_q, c.rank, error))
    fit = fit_monotone(observations, cross_validate=False)
    far = CompressionConfig(b_q=8, codebook="scalar")
    wide = CompressionConfig(b_q=4, rank=64)
    found = fill_cells(
        SPECS,
        (*MENU, far, wide),
        measured,
        fit_of=lambda c: fit if c.codebook == "trellis" else None,
        nbytes_of=nbytes_of,
    )
    holes = {(SPECS[0].key, c.config_hash) for c in MENU if c.b_q == 3}
    assert found.fitted == holes
    assert all(found.cells[key] == cell for key, cell in measured.items())
    assert found.cells[SPECS[0].key, MENU[2].config_hash].nbytes == nbytes_of(MENU[2], 64, 64)
    # no fit for the scalar codebook; rank 64 lies outside the measured ranks of q, while k's clamps to a measured one
    assert found.missing == {(spec.key, far.config_hash) for spec in SPECS} | {(SPECS[0].key, wide.config_hash)}
    problem = AllocationProblem.from_cells(SPECS, MENU, found.cells)
    assert problem.smallest_bytes == 2
