"""The reference: KL and loss in one pass, exact or from the largest log-probabilities and a tail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.errors import Interrupted
from compress_core.evaluate import reference as reference_module
from compress_core.evaluate.kl import evaluate_kl, token_kl
from compress_core.evaluate.perplexity import evaluate_perplexity
from compress_core.evaluate.reference import Reference, bucket_kl, bucket_log_probs
from compress_core.progress import silent
from compress_core.stream.hidden import run_all
from compress_core.stream.model import StreamedModel
from compress_core.text.tokens import TokenWindows

VOCABULARY = 320


def hidden(model: StreamedModel, windows: TokenWindows, noise: float = 0.0) -> torch.Tensor:
    states = run_all(model, windows.ids, silent)
    return states + noise * torch.randn(states.shape, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def model(qwen2: Path) -> StreamedModel:
    return StreamedModel(DenseWeights(open_checkpoint(qwen2)))


def test_kl_and_loss_are_those_of_whole_evaluations(
    tiny_checkpoints: dict[str, Path], random_windows: Callable[..., TokenWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_module, "_LOGITS_AT_ONCE", VOCABULARY * 11)
    sources = [DenseWeights(open_checkpoint(tiny_checkpoints[name])) for name in ("llama", "llama")]
    windows = random_windows(3, 12)
    original = StreamedModel(sources[0])
    candidate = hidden(original, windows, noise=0.2)
    found = Reference(original, hidden(original, windows), windows.ids)
    assert found.exact
    losses = found.losses(candidate)
    assert found.nll_N == pytest.approx(evaluate_perplexity(sources[0], windows).nll, rel=1e-6)
    assert losses.nll_N is not None
    logits, others = (original.logits(states.reshape(36, -1)) for states in (hidden(original, windows), candidate))
    assert losses.kl_N == pytest.approx(token_kl(logits, others).reshape(3, 12).mean(1).numpy(), rel=1e-5)
    targets = torch.from_numpy(windows.ids[:, 1:].astype(np.int64))
    log_q = torch.log_softmax(others, -1).reshape(3, 12, -1)[:, :-1]
    assert losses.nll_N == pytest.approx(-log_q.gather(2, targets[..., None]).sum((1, 2)).numpy(), rel=1e-5)
    assert (
        evaluate_kl(sources[0], sources[1], windows).tolist()
        == [0, 0, 0]
        == found.losses(hidden(original, windows)).kl_N.tolist()
    )


def test_the_largest_and_a_tail_bound_kl_from_below(
    model: StreamedModel, random_windows: Callable[..., TokenWindows]
) -> None:
    windows = random_windows(4, 16)
    final, candidate = hidden(model, windows), hidden(model, windows, noise=0.3)
    full = Reference(model, final).losses(candidate).kl_N
    found = {k: Reference(model, final, keep_bytes=0, top_k=k).losses(candidate).kl_N for k in (1, 8, 64, 256, 320)}
    short = {k: 1 - float(kl.sum() / full.sum()) for k, kl in found.items()}
    # rounding aside never more than all, ever closer, and equal where the tail is empty
    assert all(np.all(kl <= full * (1 + 1e-5)) for kl in found.values())
    assert short[1] > short[8] > short[64] > short[256] > -1e-5
    assert short[1] > 0.2
    assert short[256] < 0.05
    assert found[320] == pytest.approx(full, rel=1e-4)


def test_equal_models_differ_by_exactly_nothing(
    model: StreamedModel, random_windows: Callable[..., TokenWindows]
) -> None:
    final = hidden(model, random_windows(2, 16))
    for keep_bytes, top_k in ((None, 8), (0, 8), (0, 320), (0, 10_000)):
        found = Reference(model, final, keep_bytes=keep_bytes, top_k=top_k)
        assert found.losses(final.clone()).kl_N.tolist() == [0, 0]
    slightly = Reference(model, final, keep_bytes=0, top_k=8).losses(final * (1 + 1e-6)).kl_N
    assert np.all((slightly >= 0) & (slightly < 1e-9))


def test_what_is_kept_is_bounded(model: StreamedModel, random_windows: Callable[..., TokenWindows]) -> None:
    final = hidden(model, random_windows(2, 16))
    kept = Reference(model, final, keep_bytes=2 * 4 * 32 * VOCABULARY - 1, top_k=8)
    assert not kept.exact
    assert kept.nbytes == 32 * (4 * 9 + 4 * 8)
    assert Reference(model, final, keep_bytes=2 * 4 * 32 * VOCABULARY).exact


def test_buckets_that_are_far_apart_or_empty() -> None:
    # the reference has next to nothing where the candidate has everything, and the other way round
    log_p = torch.tensor([[0.0, -200.0], [0.0, -torch.inf], [-200.0, 0.0]])
    log_q = torch.tensor([[-200.0, 0.0], [np.log(0.75), np.log(0.25)], [-200.0, 0.0]])
    assert bucket_kl(log_p, log_q).tolist() == pytest.approx([200.0, -np.log(0.75), 0.0])
    assert bucket_kl(torch.tensor([[float("nan"), 0.0]]), log_q[:1]).isnan().all()
    assert bucket_kl(log_p[:1], torch.tensor([[float("nan"), 0.0]])).isnan().all()
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    buckets = bucket_log_probs(logits, torch.tensor([[2, 0]])).exp()
    assert buckets.tolist()[0] == pytest.approx(torch.softmax(logits, -1)[0, [2, 0, 1]].tolist())


def test_it_can_be_stopped(
    model: StreamedModel, random_windows: Callable[..., TokenWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_module, "_LOGITS_AT_ONCE", VOCABULARY * 10)
    final = hidden(model, random_windows(2, 16))
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 20:
            raise Interrupted("cancelled")

    with pytest.raises(Interrupted):
        Reference(model, final, on_piece=stop)
    assert seen == [(0, 32), (10, 32), (20, 32)]
