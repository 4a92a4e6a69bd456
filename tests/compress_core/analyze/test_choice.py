"""The guard keeps uniform unless a challenger beats it beyond doubt, and says which it was."""

from __future__ import annotations

import numpy as np
import pytest

from compress_core.analyze.choice import Candidate, choose, paired_gain
from compress_core.errors import ConfigError

N_TOKENS = np.full(24, 50, dtype=np.int64)
_RNG = np.random.default_rng(0)
HARD = _RNG.normal(3.0, 0.5, size=24)
OWN = _RNG.normal(size=(12, 24))
OWN -= OWN.mean(axis=1, keepdims=True)


def _tried(name: str, better: float, number: int = 0, noise: float = 0.01, **more: object) -> Candidate:
    """A candidate whose loss is ``better`` nats a token below 3, with noise of its own that averages to nothing."""
    nll = 50 * (HARD - better + noise * OWN[number])
    return Candidate(name, int(more.pop("nbytes", 1000)), nll, **more)  # type: ignore[call-overload,arg-type]


def test_a_clear_winner_is_kept() -> None:
    tried = [_tried("uniform 2b", 0.0, uniform=True), _tried("optimal", 0.1, 1), _tried("manual", 0.05, 2)]
    choice = choose(tried, N_TOKENS)
    assert (choice.winner, choice.uniform, choice.challenger) == (1, 0, 1)
    assert choice.gain_percent is not None
    assert choice.gain_percent.value == pytest.approx(100 * (1 - np.exp(-0.1)))
    assert 0 < choice.gain_percent.low < choice.gain_percent.value < choice.gain_percent.high
    assert choice.confidence == pytest.approx(0.975)
    assert "optimal beats uniform 2b by 9.52 % perplexity" in choice.sentence
    assert choice.sentence.endswith("it is kept.")


def test_doubt_keeps_uniform_and_says_how_much_text_would_tell() -> None:
    choice = choose([_tried("uniform", 0.0, uniform=True), _tried("optimal", 0.001, 1, noise=0.05)], N_TOKENS)
    assert choice.winner == 0
    assert choice.challenger == 1
    assert choice.gain_percent is not None
    assert choice.gain_percent.low < 0 < choice.gain_percent.high
    assert choice.gain_percent.n_needed is not None
    assert choice.gain_percent.n_needed > 24
    assert "is not shown to beat uniform" in choice.sentence
    assert f"about {choice.gain_percent.n_needed:,} windows would tell" in choice.sentence
    assert choice.sentence.endswith("uniform is recommended.")


def test_a_loss_keeps_uniform() -> None:
    choice = choose([_tried("optimal", -0.1, 1), _tried("uniform", 0.0, uniform=True)], N_TOKENS)
    assert choice.winner == 1
    assert "optimal loses to uniform by 10.52 % perplexity" in choice.sentence


def test_the_best_uniform_is_that_of_the_lowest_loss() -> None:
    tried = [_tried("3b r0", 0.0, uniform=True), _tried("2b r32", 0.2, 1, uniform=True), _tried("optimal", 0.1, 2)]
    choice = choose(tried, N_TOKENS)
    assert choice.uniform == choice.winner == 1
    assert "optimal loses to 2b r32" in choice.sentence
    assert choose(tried[:2], N_TOKENS).winner == 1
    assert choose(tried[:2], N_TOKENS).challenger is None


def test_many_challengers_need_more_evidence() -> None:
    uniform, optimal = _tried("uniform", 0.0, noise=0.0, uniform=True), _tried("optimal", 0.0135, 1, noise=0.025)
    assert choose([uniform, optimal], N_TOKENS).winner == 1
    rivals = [_tried(f"rival {number}", -0.5, number, noise=0.025) for number in range(2, 12)]
    choice = choose([uniform, optimal, *rivals], N_TOKENS)
    assert choice.challenger == 1
    assert choice.winner == 0


def test_random_allocations_never_win() -> None:
    tried = [_tried("uniform", 0.0, uniform=True), _tried("random 3", 0.5, 1, may_win=False)]
    choice = choose(tried, N_TOKENS)
    assert choice.winner == 0
    assert choice.challenger is None
    with pytest.raises(ConfigError, match="random ones"):
        choose(tried[1:], N_TOKENS)


def test_more_bytes_prove_nothing() -> None:
    tried = [_tried("uniform", 0.0, uniform=True, nbytes=1000), _tried("optimal", 0.5, 1, nbytes=1001)]
    choice = choose(tried, N_TOKENS)
    assert choice.winner == 0
    assert "takes more bytes than uniform was allowed (1,000)" in choice.sentence
    # a uniform config seldom takes all that a budget allows
    allowed = [_tried("uniform", 0.0, uniform=True, nbytes=1000, budget=1001), tried[1]]
    assert choose(allowed, N_TOKENS).winner == 1


def test_one_and_the_same_model() -> None:
    choice = choose([_tried("uniform", 0.0, uniform=True), _tried("optimal", 0.0)], N_TOKENS)
    assert choice.winner == 0
    assert "one and the same model" in choice.sentence


def test_without_uniform_there_is_no_guard() -> None:
    choice = choose([_tried("manual", 0.0), _tried("optimal", 0.1, 1)], N_TOKENS)
    assert choice.winner == 1
    assert choice.uniform is None
    assert "nothing guards" in choice.sentence


def test_one_window_is_too_few() -> None:
    tried = [
        Candidate("uniform", 1, np.array([2.0]), uniform=True),
        Candidate("optimal", 1, np.array([1.0])),
    ]
    with pytest.raises(ConfigError, match="two windows"):
        choose(tried, N_TOKENS[:1])
    with pytest.raises(ConfigError, match="same windows"):
        paired_gain(np.ones(3), np.ones(4), N_TOKENS[:3])
