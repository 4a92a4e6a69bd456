"""Noise, layers in company, and fidelities with their errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compress_core.calibrate.calibration import Calibration
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.config import CompressionConfig
from compress_core.error_metrics import normalized_mse
from compress_core.errors import ConfigError, Interrupted
from compress_core.matrix import MatrixKey
from compress_core.sensitivity.approximations import Approximations
from compress_core.sensitivity.bench import Bench
from compress_core.sensitivity.company import layer_company
from compress_core.sensitivity.fidelity import LayerFidelity, fidelities
from compress_core.sensitivity.higgs import Noise, noise_sensitivity
from compress_core.sensitivity.kl import kl_anchors
from compress_core.sensitivity.result import SensitivityResult
from compress_core.text.tokens import TokenWindows

NOISES = (Noise(0.02), Noise(0.04))
COARSE = CompressionConfig(b_q=3, codebook="rtn")
CPU = torch.device("cpu")


def test_noise_is_as_large_as_it_says_and_seeded(qwen2: Path) -> None:
    checkpoint = open_checkpoint(qwen2)
    spec = checkpoint.matrices()[0]
    w = read_matrix(checkpoint, spec)
    noisy = Noise(0.05).added(spec.key, w)
    assert normalized_mse(w, noisy) == pytest.approx(0.05**2, rel=1e-5)
    assert torch.equal(noisy, Noise(0.05).added(spec.key, w))
    others = [Noise(0.05, seed=1).added(spec.key, w), Noise(0.05).added(MatrixKey(1, "q"), w)]
    for other in others:
        cosine = torch.nn.functional.cosine_similarity((other - w).flatten(), (noisy - w).flatten(), dim=0)
        assert abs(float(cosine)) < 0.1
    assert (Noise(0.05).config_hash, Noise(0.05).to_dict()) == ("noise-0.05", {"noise": 0.05})
    for norm in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError):
            Noise(norm)


def test_kl_grows_with_the_square_of_the_noise(qwen2: Path, random_windows: Callable[..., TokenWindows]) -> None:
    bench = Bench(open_checkpoint(qwen2), random_windows(3, 16))
    seen: list[SensitivityResult] = []
    results = noise_sensitivity(bench, NOISES, on_result=seen.append)
    assert results == seen
    assert [(r.key, r.anchor) for r in results] == [(s.key, n) for s in bench.checkpoint.matrices() for n in NOISES]
    assert {r.error for r in results} == {0.02**2, 0.04**2}
    ratio = [
        fine.nats_per_error / coarse.nats_per_error for fine, coarse in zip(results[::2], results[1::2], strict=True)
    ]
    assert np.exp(np.mean(np.log(ratio))) == pytest.approx(1.0, abs=0.15)
    done = {(r.key, r.anchor.config_hash) for r in results[5:]}
    assert noise_sensitivity(bench, NOISES, done=done) == results[:5]


def test_company_is_what_restoring_a_layer_saves(
    qwen2: Path, random_windows: Callable[..., TokenWindows], qwen2_calibration: Calibration
) -> None:
    checkpoint, windows = open_checkpoint(qwen2), random_windows(3, 12)
    bench = Bench(checkpoint, windows)
    approximations = Approximations(checkpoint, qwen2_calibration, CPU, keep=True)
    alone = kl_anchors(bench, approximations, [COARSE])
    found = layer_company(bench, approximations, COARSE)
    assert [layer.layer_idx for layer in found] == [0, 1, 2]
    for layer in found:
        assert len(layer.saved_per_sequence) == 3
        cost = sum(r.kl_mean for r in alone if r.key.layer_idx == layer.layer_idx)
        assert 0.3 < np.mean(layer.saved_per_sequence) / cost < 3
    # nothing saved is the whole: a model of one layer would save all that it costs; of three, each some of it
    assert sum(np.mean(layer.saved_per_sequence) for layer in found) > 0


def test_fidelities_have_errors_and_go_on(
    qwen2: Path, random_windows: Callable[..., TokenWindows], qwen2_calibration: Calibration
) -> None:
    checkpoint = open_checkpoint(qwen2)
    bench = Bench(checkpoint, random_windows(8, 16), batch_tokens=48)
    approximations = Approximations(checkpoint, qwen2_calibration, CPU, keep=True)
    found = fidelities(bench, approximations, COARSE)
    # the jackknife of a ratio agrees with a second sample of sequences
    other = fidelities(Bench(checkpoint, random_windows(8, 16, seed=1)), approximations, COARSE)
    for one, two in zip(found, other, strict=True):
        assert one.n_sequences == 8
        assert one.cosine_se is not None
        assert one.relative_error_se is not None
        assert two.relative_error_se is not None
        assert 0 < one.cosine_se < 0.05
        assert abs(one.relative_error - two.relative_error) < 5 * np.hypot(one.relative_error_se, two.relative_error_se)
    single = fidelities(Bench(checkpoint, random_windows(1, 16)), approximations, COARSE)[0]
    assert (single.cosine_se, single.relative_error_se) == (None, None)
    seen: list[LayerFidelity] = []

    def stop(fidelity: LayerFidelity) -> None:
        seen.append(fidelity)
        raise Interrupted("cancelled")

    with pytest.raises(Interrupted):
        fidelities(bench, approximations, COARSE, on_result=stop)
    rest = fidelities(bench, approximations, COARSE, done={seen[0].layer_idx})
    assert [*seen, *rest] == found
