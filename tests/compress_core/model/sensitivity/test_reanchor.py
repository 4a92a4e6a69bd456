"""Re-anchoring: KL of an incumbent with one matrix restored, as of whole models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compress_core.calibrate.calibration import Calibration
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, Interrupted
from compress_core.evaluate.kl import evaluate_kl
from compress_core.matrix import MatrixKey
from compress_core.pack import PackedModel, write_packed_model
from compress_core.sensitivity.approximations import Approximations
from compress_core.sensitivity.bench import Bench
from compress_core.sensitivity.reanchor import Incumbent, IncumbentWeights, reanchored_sensitivity
from compress_core.sensitivity.result import SensitivityResult
from compress_core.text.tokens import TokenWindows

INCUMBENT = Incumbent("alloc_1", "hash")
CPU = torch.device("cpu")


def some_configs(checkpoint: Checkpoint) -> dict[MatrixKey, CompressionConfig]:
    """Baselines of 2 to 4 bits."""
    specs = checkpoint.matrices()
    return {spec.key: CompressionConfig(b_q=2 + i % 3, codebook="rtn") for i, spec in enumerate(specs)}


class _Restored(DenseWeights):
    """The incumbent's weights but for one original."""

    def __init__(self, weights: IncumbentWeights, original: Checkpoint, name: str) -> None:
        super().__init__(original)
        self._weights, self._restored = weights, name

    def tensor(self, name: str) -> torch.Tensor:
        return super().tensor(name) if name == self._restored else self._weights.tensor(name)


@pytest.mark.parametrize("hold", [True, False])
def test_it_is_the_difference_of_two_whole_models(
    qwen2: Path, random_windows: Callable[..., TokenWindows], qwen2_calibration: Calibration, hold: bool
) -> None:
    checkpoint, windows = open_checkpoint(qwen2), random_windows(3, 12)
    items = some_configs(checkpoint)
    approximations = Approximations(checkpoint, qwen2_calibration, CPU, keep=True)
    found = reanchored_sensitivity(Bench(checkpoint, windows, hold=hold), approximations, INCUMBENT, items)
    assert [result.key for result in found] == [spec.key for spec in checkpoint.matrices()]
    original, weights = DenseWeights(checkpoint), IncumbentWeights(checkpoint, approximations, items)
    whole = evaluate_kl(original, weights, windows)
    for result in (found[0], found[12], found[-1]):
        spec = checkpoint.matrix(result.key)
        without = evaluate_kl(original, _Restored(weights, checkpoint, spec.tensor_name), windows)
        np.testing.assert_allclose(result.kl_per_sequence, whole - without, rtol=5e-3, atol=1e-6)
        assert result.error == approximations.of(spec, items[spec.key]).calibration_weighted_error
        assert (result.method, result.anchor) == ("reanchored", INCUMBENT)
    assert sum(result.kl_mean for result in found) > 0


def test_the_incumbent_is_the_packed_model(
    unusual_family: Path, random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    """Fused matrices and experts too."""
    checkpoint, windows = open_checkpoint(unusual_family), random_windows(2, 8)
    items = some_configs(checkpoint)
    weights = IncumbentWeights(checkpoint, Approximations(checkpoint, None, CPU, keep=True), items)
    write_packed_model(checkpoint, None, items, tmp_path / "packed")
    packed = PackedModel.open(tmp_path / "packed")
    assert evaluate_kl(packed, weights, windows) == pytest.approx(0.0, abs=1e-7)
    assert evaluate_kl(DenseWeights(checkpoint), weights, windows).min() > 1e-3


def test_known_ones_are_left_out_and_it_stops(
    qwen2: Path, random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    checkpoint, windows = open_checkpoint(qwen2), random_windows(2, 8)
    items, bench = some_configs(checkpoint), Bench(checkpoint, windows)
    seen: list[SensitivityResult] = []

    def record(result: SensitivityResult) -> None:
        seen.append(result)
        if len(seen) == 5:
            raise Interrupted("cancelled")

    approximations = Approximations(checkpoint, None, CPU, keep=True, folder=tmp_path)
    with pytest.raises(Interrupted):
        reanchored_sensitivity(bench, approximations, INCUMBENT, items, on_result=record)
    done = {result.key for result in seen}
    rest = reanchored_sensitivity(bench, approximations, INCUMBENT, items, done=done)
    assert [r.key for r in (*seen, *rest)] == [spec.key for spec in checkpoint.matrices()]
    everything = reanchored_sensitivity(bench, approximations, INCUMBENT, items)
    assert everything == [*seen, *rest]
    assert reanchored_sensitivity(bench, approximations, INCUMBENT, items, done=set(items)) == []


def test_refusals(qwen2: Path, random_windows: Callable[..., TokenWindows]) -> None:
    checkpoint = open_checkpoint(qwen2)
    bench, items = Bench(checkpoint, random_windows(1, 8)), some_configs(checkpoint)
    forgetful = Approximations(checkpoint, None, CPU)
    with pytest.raises(ConfigError, match="kept"):
        reanchored_sensitivity(bench, forgetful, INCUMBENT, items)
    del items[MatrixKey(1, "o")]
    with pytest.raises(ConfigError, match=r"1\.o"):
        reanchored_sensitivity(bench, forgetful, INCUMBENT, items)
