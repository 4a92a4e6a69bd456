"""An input is prepared once a seed, for all matrices that read it, and the results do not show it."""

from __future__ import annotations

import pytest
import torch

from compress_core import CompressionConfig, compress_matrix, sweep_matrix
from compress_core import shared_inputs as module
from compress_core.context import InputContext
from compress_core.measurement import MatrixMeasurement
from compress_core.shared_inputs import SharedInput

CPU = torch.device("cpu")
GRID = [
    CompressionConfig(b_q=b, rank=r, seed=seed, states=256, iterations=2)
    for seed, b, r in [(0, 2, 0), (0, 2, 8), (3, 2, 4), (0, 3, 2)]
] + [
    CompressionConfig(b_q=3, codebook="rtn", seed=9),
    CompressionConfig(b_q=4, codebook="gptq", seed=9),
    CompressionConfig(b_q=5, rank=3, codebook="scalar", factor_bits=16, seed=3),
]


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the inputs that were prepared through a SharedInput."""
    seeds: list[int] = []
    prepare = module.prepare_input

    def count(h: torch.Tensor | None, in_features: int, seed: int, device: torch.device) -> InputContext:
        seeds.append(seed)
        return prepare(h, in_features, seed, device)

    monkeypatch.setattr(module, "prepare_input", count)
    return seeds


def facts(measurements: list[MatrixMeasurement]) -> list[tuple[object, ...]]:
    """All but the time that they took."""
    return [(m.config, m.raw_mse, m.normalized_mse, m.calibration_weighted_error, m.nbytes) for m in measurements]


def test_a_sweep_of_three_matrices_prepares_each_seed_once_and_measures_the_same(make_layer, prepared) -> None:
    _, h = make_layer(24, 44)
    shared = SharedInput(h, 44, CPU)
    for out_features in (32, 16, 24):
        w, _ = make_layer(out_features, 44, seed=out_features)
        together = sweep_matrix(w, h, GRID, shared=shared)
        assert facts(together) == facts(sweep_matrix(w, h, GRID))
    assert prepared == [0, 3]  # and none for seed 9: baselines rotate nothing


def test_matrices_compressed_with_a_shared_input_have_the_same_bytes(make_layer, prepared) -> None:
    _, h = make_layer(24, 44)
    shared = SharedInput(h, 44, CPU)
    for seed in range(2):
        w, _ = make_layer(24, 44, seed=seed)
        for config in GRID[:4]:
            together = compress_matrix(w, h, config, shared=shared)
            assert torch.equal(together.blob(), compress_matrix(w, h, config).blob())
    assert prepared == [0, 3]


def test_round_to_nearest_prepares_nothing(make_layer, prepared) -> None:
    w, h = make_layer(24, 44)
    compress_matrix(w, h, CompressionConfig(b_q=3, codebook="rtn"), shared=SharedInput(h, 44, CPU))
    assert prepared == []


@pytest.mark.parametrize("what", ["hessian", "no hessian", "width"])
def test_another_input_is_refused(make_layer, what) -> None:
    w, h = make_layer(16, 24)
    shared = SharedInput(None if what == "no hessian" else h, 40 if what == "width" else 24, CPU)
    other = h.clone() if what == "hessian" else h
    with pytest.raises(ValueError, match="the shared input"):
        compress_matrix(w, other, GRID[0], shared=shared)
    with pytest.raises(ValueError, match="the shared input"):
        sweep_matrix(w, other, GRID[:1], shared=shared)
