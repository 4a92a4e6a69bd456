"""Fisher scores: their definitions, from gradients of a whole model; and what they predict of measured KL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from compress_core.calibrate.calibration import Calibration
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.config import CompressionConfig
from compress_core.decompose import compress_matrix
from compress_core.errors import ConfigError, Interrupted
from compress_core.sensitivity.approximations import Approximations
from compress_core.sensitivity.bench import Bench
from compress_core.sensitivity.fisher import METHODS, fisher_sensitivity
from compress_core.sensitivity.kl import kl_anchors
from compress_core.sensitivity.result import SensitivityResult
from compress_core.text.tokens import TokenWindows

ANCHORS = (CompressionConfig(b_q=3, codebook="rtn"), CompressionConfig(b_q=5, codebook="rtn"))
CPU = torch.device("cpu")


def test_scores_are_what_they_are_defined_as(
    qwen2: Path, random_windows: Callable[..., TokenWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "multinomial", lambda p, n, generator: p.argmax(-1, keepdim=True))
    checkpoint, windows = open_checkpoint(qwen2), random_windows(3, 10)
    bench = Bench(checkpoint, windows)
    results = fisher_sensitivity(bench, Approximations(checkpoint, None, CPU), ANCHORS)
    found = {(r.method, r.key, r.anchor.config_hash): r for r in results}
    assert len(found) == len(results) == 2 * 2 * 21
    whole = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32)
    spec = checkpoint.layer_matrices(1)[3]
    module = whole.get_submodule(spec.module_name)
    seen: list[torch.Tensor] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        out.retain_grad()
        seen[:] = [inputs[0][0].detach(), out]

    module.register_forward_hook(note)
    for anchor in ANCHORS:
        d = compress_matrix(read_matrix(checkpoint, spec), None, anchor).dequantize() - module.weight.detach()
        for number in range(3):
            whole.zero_grad()
            logits = whole(torch.from_numpy(windows.ids[number : number + 1].astype(np.int64))).logits[0]
            torch.log_softmax(logits, -1).max(-1).values.sum().backward()
            assert seen[1].grad is not None
            g, x, gradient = seen[1].grad[0], seen[0], module.weight.grad
            assert gradient is not None
            expected = {
                "fisher_output": float((g * (x @ d.T)).square().sum()) / 20,
                "fisher_diagonal": float((gradient * d).square().sum()) / 20,
            }
            for method, value in expected.items():
                result = found[method, spec.key, anchor.config_hash]
                assert result.kl_per_sequence[number] == pytest.approx(value, rel=1e-3)


def test_they_predict_the_size_of_small_divergences(
    qwen2: Path, random_windows: Callable[..., TokenWindows], qwen2_calibration: Calibration
) -> None:
    checkpoint = open_checkpoint(qwen2)
    bench = Bench(checkpoint, random_windows(6, 24))
    approximations = Approximations(checkpoint, qwen2_calibration, CPU, keep=True)
    measured = {r.key: r for r in kl_anchors(bench, approximations, ANCHORS[1:])}
    predicted = fisher_sensitivity(bench, approximations, ANCHORS[1:])
    for method in METHODS:
        of_method = [result for result in predicted if result.method == method]
        assert [r.error for r in of_method] == [measured[r.key].error for r in of_method]
        ratios = np.array([result.kl_mean / measured[result.key].kl_mean for result in of_method])
        assert 0.4 < np.exp(np.log(ratios).mean()) < 2.5
        logs = np.log([[result.kl_mean, measured[result.key].kl_mean] for result in of_method]).T
        assert np.corrcoef(logs)[0, 1] > 0.6


def test_known_ones_are_left_out_and_it_stops(
    qwen2: Path, random_windows: Callable[..., TokenWindows], tmp_path: Path, qwen2_calibration: Calibration
) -> None:
    """Of a calibration that computes H, in the order of the layers."""
    checkpoint, windows = open_checkpoint(qwen2), random_windows(2, 8)
    bench = Bench(checkpoint, windows)
    everything = fisher_sensitivity(bench, Approximations(checkpoint, qwen2_calibration, CPU), ANCHORS[:1])
    seen: list[SensitivityResult] = []

    def record(result: SensitivityResult) -> None:
        seen.append(result)
        if len(seen) == 20:
            raise Interrupted("cancelled")

    kept = Approximations(checkpoint, qwen2_calibration, CPU, keep=True, folder=tmp_path / "kept")
    with pytest.raises(Interrupted):
        fisher_sensitivity(bench, kept, ANCHORS[:1], on_result=record)
    # another attempt finds what the first one decomposed, and needs no H
    again = Approximations(checkpoint, None, CPU, keep=True, folder=tmp_path / "kept")
    done = {(r.method, r.key, r.anchor.config_hash) for r in seen}
    rest = fisher_sensitivity(bench, again, ANCHORS[:1], done=done)
    assert sorted([*seen, *rest], key=str) == sorted(everything, key=str)
    assert (
        fisher_sensitivity(
            bench, again, ANCHORS[:1], METHODS[:1], done={(r.method, r.key, r.anchor.config_hash) for r in everything}
        )
        == []
    )
    with pytest.raises(ConfigError, match="fisher_other"):
        fisher_sensitivity(bench, again, ANCHORS, ["fisher_other"])


def test_experts_that_no_token_reaches_have_no_score(
    make_family: Callable[[str], Path], random_windows: Callable[..., TokenWindows]
) -> None:
    checkpoint = open_checkpoint(make_family("qwen2_moe"))
    bench = Bench(checkpoint, random_windows(2, 2))
    results = fisher_sensitivity(bench, Approximations(checkpoint, None, CPU), ANCHORS[:1])
    assert {r.key for r in results} == {spec.key for spec in checkpoint.matrices()}
    assert any(kl == 0 for r in results if r.key.expert_idx >= 0 for kl in r.kl_per_sequence)
    assert all(kl > 0 for r in results if r.key.expert_idx < 0 for kl in r.kl_per_sequence)
