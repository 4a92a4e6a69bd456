"""The headline never claims more than the interval."""

from __future__ import annotations

import json
import math

import pytest

from compress_core.analyze import Contender, Estimate, Guard, Headline, gain_from_nll
from compress_core.analyze.headline import rival_remark

UNIFORM = Contender("best uniform", 8.0, 1000, 2.5)
OPTIMAL = Contender("optimal", 7.0, 990, 2.48)
ORIGINAL = Contender("original", 6.0, 6400, 16.0)


def test_gain_from_nll() -> None:
    gain = gain_from_nll(math.log(0.9), math.log(0.88), math.log(0.93), n=64)
    assert gain.value == pytest.approx(10)
    assert gain.low == pytest.approx(7)
    assert gain.high == pytest.approx(12)


def test_a_win() -> None:
    headline = Headline(UNIFORM, OPTIMAL, Estimate(12.5, 10, 15, 64), ORIGINAL)
    assert headline.recommended == "optimal"
    assert "beats best uniform by 12.50 %" in headline.sentence()
    assert headline.excess_removed == pytest.approx(1 - math.log(7 / 6) / math.log(8 / 6))
    assert json.loads(json.dumps(headline.to_dict()))["recommended"] == "optimal"


@pytest.mark.parametrize(
    ("gain", "words"),
    [(Estimate(1, -1, 3, 9), "is not shown to beat"), (Estimate(-2, -3, -1, 9), "loses to best uniform by 2.00 %")],
)
def test_no_win_recommends_uniform(gain: Estimate, words: str) -> None:
    headline = Headline(UNIFORM, OPTIMAL, gain)
    assert headline.recommended == "best uniform"
    assert words in headline.sentence()
    assert headline.excess_removed is None


def test_the_same_choice_is_called_the_same() -> None:
    sentence = Headline(UNIFORM, Contender("optimal", 8.0, 1000, 2.5), gain_from_nll(0, 0, 0, n=9)).sentence()
    assert "are one and the same model at 1,000 of 1,000 bytes" in sentence
    assert "-0.00" not in sentence


def test_more_bytes_claim_nothing() -> None:
    headline = Headline(UNIFORM, Contender("optimal", 7.0, 1010, 2.5), Estimate(12, 10, 14, 9))
    assert headline.recommended == "best uniform"
    assert "10 bytes more" in headline.sentence()


def test_no_excess_to_remove() -> None:
    assert Headline(UNIFORM, OPTIMAL, Estimate(1, 0, 2, 9), Contender("original", 8.5, 1, 16.0)).excess_removed is None


WON, LOST = Guard(True, Estimate(6, 4, 8, 48)), Guard(False, Estimate(1, -2, 4, 48))


@pytest.mark.parametrize(
    ("guard", "gain", "recommended", "words"),
    [
        (
            WON,
            Estimate(5, 3, 7, 64),
            "optimal",
            "Optimal is recommended: optimal won on the select split, too (+6.00 %",
        ),
        (WON, Estimate(1, -1, 3, 64), "optimal", "is not shown to beat best uniform"),
        (WON, Estimate(-2, -3, -1, 64), "best uniform", "Best uniform is recommended, although optimal won"),
        (LOST, Estimate(5, 3, 7, 64), "best uniform", "did not beat best uniform beyond doubt (+1.00 %"),
        (Guard(False), Estimate(1, -1, 3, 64), "best uniform", "nothing could compete with best uniform"),
    ],
)
def test_the_guard_recommends(guard: Guard, gain: Estimate, recommended: str, words: str) -> None:
    headline = Headline(UNIFORM, OPTIMAL, gain, guard=guard)
    assert headline.recommended == recommended
    assert words in headline.sentence()
    assert f"{recommended.capitalize()} is recommended" in headline.sentence()


def test_the_guard_names_the_optimum_that_it_judged() -> None:
    judged = Guard(False, Estimate(1, -2, 4, 48), challenger="optimal, re-anchored")
    sentence = Headline(UNIFORM, OPTIMAL, Estimate(5, 3, 7, 64), guard=judged).sentence()
    assert "on the select split optimal, re-anchored did not beat best uniform beyond doubt (+1.00 %" in sentence
    assert sentence.startswith("optimal beats best uniform")


def test_no_guard_makes_more_bytes_fair() -> None:
    headline = Headline(UNIFORM, Contender("optimal", 7.0, 1010, 2.5), Estimate(12, 10, 14, 9), guard=WON)
    assert headline.recommended == "best uniform"


def test_the_ceiling_is_what_the_original_would_gain() -> None:
    headline = Headline(
        UNIFORM, OPTIMAL, Estimate(12.5, 10, 15, 64), ORIGINAL, ceiling_percent=Estimate(25, 20, 30, 64)
    )
    assert "The original itself would gain 25.00 % over best uniform" in str(headline.ceiling())
    assert Headline(UNIFORM, OPTIMAL, Estimate(1, 0, 2, 9)).ceiling() is None


def test_a_baseline_that_optimal_does_not_beat_is_named() -> None:
    rank0 = Contender("rank 0, optimal", 6.9, 985, 2.46)
    assert rival_remark(OPTIMAL, rank0, Estimate(2, 1, 3, 64)) is None
    better = rival_remark(OPTIMAL, rank0, Estimate(-1.5, -2, -1, 64))
    assert better is not None
    assert "rank 0, optimal at 985 bytes is better than optimal by 1.50 %" in better
    assert "+1.00 … +2.00 %" in better
    level = rival_remark(OPTIMAL, rank0, Estimate(0.1, -0.2, 0.4, 64))
    assert level is not None
    assert "not distinguishable" in level
