"""KL anchors: zero for the original, the same as two whole models, resumable."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress_core.calibrate.calibration import Calibration
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights, read_matrix, read_tensor
from compress_core.config import CompressionConfig
from compress_core.decompose import compress_matrix
from compress_core.error_metrics import calibration_weighted_error
from compress_core.errors import Interrupted
from compress_core.evaluate import reference as reference_module
from compress_core.evaluate.kl import evaluate_kl
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.progress import silent
from compress_core.sensitivity import measure as measure_module
from compress_core.sensitivity.bench import Bench
from compress_core.sensitivity.fidelity import layer_fidelity
from compress_core.sensitivity.kl import kl_sensitivity
from compress_core.sensitivity.measure import Change, measure_changes
from compress_core.sensitivity.result import SensitivityResult
from compress_core.text.tokens import TokenWindows

ANCHORS = (CompressionConfig(b_q=2, codebook="rtn"), CompressionConfig(b_q=4, codebook="rtn"))


class _OneReplaced(DenseWeights):
    """The original weights but for one tensor."""

    def __init__(self, path: Path, name: str, weight: torch.Tensor) -> None:
        super().__init__(open_checkpoint(path))
        self._name, self._weight = name, weight

    def tensor(self, name: str) -> torch.Tensor:
        return self._weight if name == self._name else super().tensor(name)


def kl_of(bench: Bench, spec: MatrixSpec, weight_OI: torch.Tensor) -> tuple[float, ...]:
    """Of each sequence, with one weight replaced."""
    work = [Change(spec, ANCHORS[0])]
    (found,) = measure_changes(bench.model, bench.reference, work, lambda change: (weight_OI, 1.0), silent)
    return found.kl_per_sequence


def test_restoring_the_original_costs_nothing(qwen2: Path, random_windows: Callable[..., TokenWindows]) -> None:
    checkpoint = open_checkpoint(qwen2)
    bench = Bench(checkpoint, random_windows(5, 16), batch_tokens=32)
    for spec in checkpoint.matrices():
        assert max(map(abs, kl_of(bench, spec, read_matrix(checkpoint, spec)))) < 1e-9
    # and a replacement leaves no trace
    spec = checkpoint.matrices()[4]
    assert min(kl_of(bench, spec, torch.zeros(spec.out_features, spec.in_features))) > 1e-4
    assert max(map(abs, kl_of(bench, spec, read_matrix(checkpoint, spec)))) < 1e-9


@pytest.mark.parametrize("limit", [0, 1 << 31])
def test_equals_the_kl_of_two_whole_models(
    qwen2: Path,
    qwen2_calibration: Calibration,
    random_windows: Callable[..., TokenWindows],
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    monkeypatch.setattr(reference_module, "KEEP_BYTES", limit)
    monkeypatch.setattr(reference_module, "_LOGITS_AT_ONCE", 320 * 11)
    checkpoint, windows = open_checkpoint(qwen2), random_windows(4, 16)
    results = kl_sensitivity(checkpoint, qwen2_calibration, windows, ANCHORS, batch_tokens=48)
    assert [(r.key, r.anchor) for r in results] == [(s.key, a) for s in checkpoint.matrices() for a in ANCHORS]
    for result in (results[0], results[13], results[-1]):
        spec = checkpoint.matrix(result.key)
        weight, hessian = read_tensor(checkpoint.tensors[spec.tensor_name]), qwen2_calibration.hessian(spec.key)
        assert isinstance(result.anchor, CompressionConfig)
        approximation = compress_matrix(weight, hessian, result.anchor).dequantize()
        replaced = _OneReplaced(qwen2, spec.tensor_name, approximation)
        expected = evaluate_kl(DenseWeights(checkpoint), replaced, windows)
        np.testing.assert_allclose(result.kl_per_sequence, expected, rtol=2e-3, atol=1e-7)
        error = calibration_weighted_error(weight, approximation, hessian)
        assert result.error == error
        assert result.nats_per_error == pytest.approx(result.kl_mean / error)
    coarse, fine = results[0::2], results[1::2]
    assert sum(r.kl_mean for r in coarse) > 5 * sum(r.kl_mean for r in fine)


def test_layers_that_are_not_held_give_the_same(
    qwen2: Path,
    qwen2_calibration: Calibration,
    random_windows: Callable[..., TokenWindows],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint, windows = open_checkpoint(qwen2), random_windows(4, 16)
    held = kl_sensitivity(checkpoint, qwen2_calibration, windows, ANCHORS, batch_tokens=48, hold=True)
    # all replacements of a layer together, and few at a time
    for limit in (measure_module._WAITING_LIMIT, 3 * 4 * 4 * 16 * 24):
        monkeypatch.setattr(measure_module, "_WAITING_LIMIT", limit)
        assert kl_sensitivity(checkpoint, qwen2_calibration, windows, ANCHORS, batch_tokens=48, hold=False) == held


def test_it_stops_between_two_layers(qwen2: Path, random_windows: Callable[..., TokenWindows]) -> None:
    seen: list[SensitivityResult] = []

    def stop(done: int, total: int, message: str) -> None:
        if message == "replacements of layer 0 run through layer 2":
            raise Interrupted("cancelled")

    arguments = (open_checkpoint(qwen2), None, random_windows(1, 8), ANCHORS)
    with pytest.raises(Interrupted):
        kl_sensitivity(*arguments, hold=False, progress=stop, on_result=seen.append)
    assert seen == []


def test_one_layer_is_loaded_at_a_time(
    qwen2: Path, random_windows: Callable[..., TokenWindows], loaded_layers: Any
) -> None:
    kl_sensitivity(open_checkpoint(qwen2), None, random_windows(1, 8), ANCHORS[:1], hold=False)
    assert (loaded_layers.most, loaded_layers.now) == (1, set())
    kl_sensitivity(open_checkpoint(qwen2), None, random_windows(1, 8), ANCHORS[:1], hold=True)
    assert loaded_layers.most == open_checkpoint(qwen2).n_layers


def test_results_are_told_at_once_and_known_ones_left_out(
    qwen2: Path, qwen2_calibration: Calibration, random_windows: Callable[..., TokenWindows]
) -> None:
    checkpoint, windows = open_checkpoint(qwen2), random_windows(2, 8)
    seen: list[SensitivityResult] = []

    def record(result: SensitivityResult) -> None:
        seen.append(result)
        if len(seen) == 5:
            raise Interrupted("cancelled")

    with pytest.raises(Interrupted):
        kl_sensitivity(checkpoint, qwen2_calibration, windows, ANCHORS, on_result=record)
    done = {(result.key, result.anchor.config_hash) for result in seen}
    steps: list[int] = []
    rest = kl_sensitivity(
        checkpoint,
        qwen2_calibration,
        windows,
        ANCHORS,
        done=done,
        progress=lambda number, total, message: steps.append(total),
    )
    assert len(rest) == 42 - 5
    assert set(steps) == {37}
    everything = {(r.key, r.anchor.config_hash) for r in (*seen, *rest)}
    assert len(everything) == 42
    assert kl_sensitivity(checkpoint, qwen2_calibration, windows, ANCHORS, done=everything) == []


def test_ranks_are_cut_and_equal_anchors_measured_once(
    qwen2: Path, random_windows: Callable[..., TokenWindows]
) -> None:
    anchors = [CompressionConfig(b_q=2, rank=r, codebook="scalar", iterations=1) for r in (60, 70)]
    checkpoint = open_checkpoint(qwen2)
    done = {
        (s.key, anchors[0].clamped(s.out_features, s.in_features).config_hash)
        for s in checkpoint.matrices()
        if s.key != MatrixKey(0, "k")
    }
    results = kl_sensitivity(checkpoint, None, random_windows(1, 4), anchors, done=done)
    assert [(str(r.key), r.anchor.to_dict()["rank"]) for r in results] == [("0.k", 24)]


def test_statistics_of_a_result() -> None:
    result = SensitivityResult(MatrixKey(0, "q"), ANCHORS[0], (1.0, 2.0, 3.0), 0.5, "kl_anchor")
    assert (result.kl_mean, result.n_sequences, result.nats_per_error) == (2.0, 3, 4.0)
    assert result.kl_standard_error == pytest.approx(1 / math.sqrt(3))
    assert SensitivityResult(MatrixKey(0, "q"), ANCHORS[0], (1.0,), 0.5, "kl_anchor").kl_standard_error == math.inf
    assert SensitivityResult(MatrixKey(0, "q"), ANCHORS[0], (0.0,), 0.0, "kl_anchor").nats_per_error == 0.0


def test_layer_fidelity(
    qwen2: Path, qwen2_calibration: Calibration, random_windows: Callable[..., TokenWindows]
) -> None:
    checkpoint, windows = open_checkpoint(qwen2), random_windows(3, 10)
    coarse = layer_fidelity(checkpoint, qwen2_calibration, windows, ANCHORS[0])
    fine = layer_fidelity(checkpoint, qwen2_calibration, windows, CompressionConfig(b_q=8, codebook="rtn"))
    assert [f.layer_idx for f in fine] == [0, 1, 2]
    for a, b in zip(coarse, fine, strict=True):
        assert 0.999 < b.cosine <= 1.0
        assert a.cosine < b.cosine
        assert 0 < b.relative_error < 1e-3 < a.relative_error
    seen: list[int] = []
    items = {spec.key: ANCHORS[1] for spec in checkpoint.matrices()}
    layer_fidelity(checkpoint, None, windows, items, on_result=lambda f: seen.append(f.layer_idx))
    assert seen == [0, 1, 2]
