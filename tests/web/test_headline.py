"""The stored headline as the page tells it."""

from __future__ import annotations

from typing import Any

import pytest

from web.headline import headlines


def _stored(verdict: str, **comparison: Any) -> dict[str, Any]:
    entry = {"rows": [], "optimal_vs_uniform": {"verdict": verdict} | comparison, "sentence": "as stored"}
    return entry | {"budgets": [entry]}


@pytest.mark.parametrize(
    ("verdict", "tone"),
    [
        ("optimal is better", "good"),
        ("optimal is worse", "bad"),
        ("not distinguishable", "warn"),
        ("not measured", "quiet"),
    ],
)
def test_verdict_has_its_tone(verdict: str, tone: str) -> None:
    (headline,) = headlines(_stored(verdict))
    assert (headline.verdict, headline.tone, headline.sentence) == (verdict, tone, "as stored")


def test_more_bytes_than_uniform_prove_nothing() -> None:
    (headline,) = headlines(_stored("optimal is better", fair=False))
    assert (headline.verdict, headline.tone) == ("not comparable", "warn")


def test_nothing_compared_says_so() -> None:
    (headline,) = headlines({"rows": [{"name": "uniform", "ppl": 12.0}], "optimal_vs_uniform": None})
    assert headline.verdict == "not measured"
    assert "nothing to compare" in headline.sentence
    assert headline.rows[0].label == "uniform"


def test_study_without_result_has_no_headline() -> None:
    assert headlines(None) == ()
    assert headlines({}) == ()
