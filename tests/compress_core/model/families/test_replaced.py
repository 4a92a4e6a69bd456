"""Sensitivities and fidelity of fused matrices and of experts: one matrix replaced, and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights, read_matrix
from compress_core.config import CompressionConfig
from compress_core.evaluate.kl import evaluate_kl
from compress_core.matrix import MatrixSpec
from compress_core.progress import silent
from compress_core.sensitivity.bench import Bench
from compress_core.sensitivity.fidelity import layer_fidelity
from compress_core.sensitivity.kl import kl_sensitivity
from compress_core.sensitivity.measure import Change, measure_changes
from compress_core.text.tokens import TokenWindows

ANCHOR = CompressionConfig(b_q=2, codebook="rtn")


class _OneReplaced(DenseWeights):
    """The original weights but for some rows of one tensor."""

    def __init__(self, path: Path, name: str, rows: tuple[int, int] | None, weight: torch.Tensor) -> None:
        super().__init__(open_checkpoint(path))
        self._name, self._rows, self._weight = name, rows, weight

    def tensor(self, name: str) -> torch.Tensor:
        tensor = super().tensor(name)
        if name == self._name:
            tensor[slice(*self._rows) if self._rows else slice(None)] = self._weight
        return tensor


def kl_of(bench: Bench, spec: MatrixSpec, weight_OI: torch.Tensor) -> tuple[float, ...]:
    """Of each sequence, with one weight replaced."""
    (found,) = measure_changes(
        bench.model, bench.reference, [Change(spec, ANCHOR)], lambda change: (weight_OI, 1.0), silent
    )
    return found.kl_per_sequence


def test_equals_a_model_with_another_weight(unusual_family: Path, random_windows: Callable[..., TokenWindows]) -> None:
    checkpoint, windows = open_checkpoint(unusual_family), random_windows(3, 12)
    bench = Bench(checkpoint, windows, batch_tokens=24)
    unusual = [s for s in checkpoint.layer_matrices(1) if s.rows is not None or s.key.expert_idx in (0, 4)]
    assert {spec.key.projection for spec in unusual} >= {"gate", "up"}
    for spec in unusual:
        weight = -read_matrix(checkpoint, spec)
        found = kl_of(bench, spec, weight)
        other = _OneReplaced(unusual_family, spec.tensor_name, spec.rows, weight)
        expected = evaluate_kl(DenseWeights(checkpoint), other, windows)
        assert max(expected) > 1e-4
        assert found == pytest.approx(expected, rel=5e-3, abs=1e-6)
        # and it leaves no trace
        assert max(map(abs, kl_of(bench, spec, read_matrix(checkpoint, spec)))) < 1e-9


def test_every_matrix_has_a_sensitivity(unusual_family: Path, random_windows: Callable[..., TokenWindows]) -> None:
    checkpoint, windows = open_checkpoint(unusual_family), random_windows(2, 8)
    results = kl_sensitivity(checkpoint, None, windows, [ANCHOR])
    assert [result.key for result in results] == [spec.key for spec in checkpoint.matrices()]
    assert all(result.kl_mean >= 0 for result in results)
    assert all(fidelity.cosine < 0.9999 for fidelity in layer_fidelity(checkpoint, None, windows, ANCHOR))
