"""The parametric shapes: their derivatives, and the way from the solver's parameters to the reported ones."""

from __future__ import annotations

import numpy as np
import pytest

from compress_core.fit.shapes import AdditiveShape, LogLinearShape, PooledRankShape, Shape, ShapeCells, SpectralShape

CELLS = ShapeCells(
    np.array([2.0, 3.0, 4.0, 2.0, 8.0]), np.array([0.0, 4.0, 16.0, 64.0, 1.0]), np.array([0.0, 0.2, 0.5, 0.9, 0.05])
)
SHAPES = [AdditiveShape(3.0), LogLinearShape(), SpectralShape(), PooledRankShape(64.0)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: type(s).__name__)
def test_jacobians(shape: Shape) -> None:
    theta = np.asarray(shape.starts()[0]) + 0.07
    _, jacobian = shape.log_shape(theta, CELLS)
    for k, step in enumerate(1e-6 * np.eye(len(theta))):
        difference = (shape.log_shape(theta + step, CELLS)[0] - shape.log_shape(theta - step, CELLS)[0]) / 2e-6
        assert jacobian[:, k] == pytest.approx(difference, abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: type(s).__name__)
def test_rows_may_have_parameters_of_their_own(shape: Shape) -> None:
    theta = np.stack([np.asarray(shape.starts()[0]) + 0.01 * i for i in range(5)])
    together, _ = shape.log_shape(theta, CELLS)
    assert CELLS.captured is not None
    for i in range(5):
        one = ShapeCells(CELLS.bits[[i]], CELLS.rank[[i]], CELLS.captured[[i]])
        assert shape.log_shape(theta[i], one)[0][0] == pytest.approx(together[i])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: type(s).__name__)
def test_reported_parameters_rise_with_their_links(shape: Shape) -> None:
    values = shape.linked(np.asarray(shape.starts()[0]))
    assert len(values) == len(shape.names)
    assert (shape.unlinked(values + 0.1) > shape.unlinked(values)).all()
    assert np.isfinite(shape.unlinked(values + 1e4)).all() or shape.form == "multiplicative"
    assert set(shape.positive) <= set(shape.names)


def test_the_plans_parameters_are_normalised() -> None:
    shape = AdditiveShape(3.0)
    theta = np.array([1.3, 1.8, 0.6])
    alpha, beta, gamma, delta = shape.unlinked(shape.linked(theta))
    assert alpha + gamma == pytest.approx(1)
    bits, rank = CELLS.bits, CELLS.rank
    law = np.log(alpha * 2 ** (-beta * bits) + gamma * (rank + 1) ** -delta)
    found = shape.log_shape(theta, CELLS)[0] - shape.log_scale_shift(theta)
    assert found == pytest.approx(law)


def test_the_spectral_shape_asks_for_its_shares() -> None:
    with pytest.raises(ValueError, match="captured share"):
        SpectralShape().log_shape(np.array([1.0, 1.0]), ShapeCells(CELLS.bits, CELLS.rank))
