"""KL of logits: the textbook's value, exact zero, no overflow; and between two models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.evaluate.kl import evaluate_kl, token_kl
from compress_core.text.tokens import TokenWindows


def _textbook(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    log_p, log_q = (torch.log_softmax(z.double(), -1) for z in (reference, logits))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@given(st.integers(0, 10**6), st.sampled_from([1e-4, 1e-2, 1.0, 10.0]), st.sampled_from([0.5, 5.0, 30.0]))
@settings(max_examples=40, deadline=None)
def test_equals_the_textbook(seed: int, distance: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference = spread * torch.randn(5, 211, generator=generator)
    logits = reference + distance * torch.randn(5, 211, generator=generator)
    expected = _textbook(reference, logits)
    kl = token_kl(reference, logits).double()
    torch.testing.assert_close(kl, expected, rtol=1e-3, atol=2e-6 * distance)


def test_zero_is_exact_and_shifts_do_not_matter() -> None:
    reference = 8 * torch.randn(4, 100)
    assert torch.equal(token_kl(reference, reference.clone()), torch.zeros(4))
    assert token_kl(reference, reference + 5).abs().max() < 1e-5


def test_huge_differences_do_not_overflow() -> None:
    reference = torch.tensor([[0.0, 500.0, 3.0], [0.0, 1.0, 2.0]])
    logits = torch.tensor([[900.0, 0.0, -900.0], [0.0, 1.0, 2.0]])
    kl = token_kl(reference, logits)
    torch.testing.assert_close(kl.double(), _textbook(reference, logits))


def test_between_two_models(tiny_checkpoints: dict[str, Path], random_windows: Callable[..., TokenWindows]) -> None:
    sources = [DenseWeights(open_checkpoint(tiny_checkpoints[name])) for name in ("qwen2", "llama")]
    windows = random_windows(3, 12)
    assert evaluate_kl(sources[0], sources[0], windows).tolist() == [0, 0, 0]
    steps: list[int] = []
    kl = evaluate_kl(*sources, windows, progress=lambda done, total, message: steps.append(done))
    assert kl.shape == (3,)
    assert np.all(kl > 0.01)
    assert steps == list(range(1, 8))


@pytest.mark.parametrize("n_windows", [1, 4])
def test_asymmetric(
    tiny_checkpoints: dict[str, Path], random_windows: Callable[..., TokenWindows], n_windows: int
) -> None:
    a, b = (DenseWeights(open_checkpoint(tiny_checkpoints[name])) for name in ("llama", "mistral"))
    windows = random_windows(n_windows, 8)
    assert not np.allclose(evaluate_kl(a, b, windows), evaluate_kl(b, a, windows), rtol=1e-6)
