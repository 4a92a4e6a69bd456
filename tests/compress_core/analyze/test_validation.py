"""A validation's findings: one table, pairwise comparisons, the guard's verdict, and what random allocations teach."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from compress_core.analyze.validation import Tried, assess

N = 16
N_TOKENS = np.full(N, 50, dtype=np.int64)
ORIGINAL = 50 * np.random.default_rng(1).normal(2.0, 0.3, size=N)


def _tried(name: str, kind: str, kl: float, seed: int, **more: object) -> Tried:
    """Its loss exceeds the original's by its KL, with noise."""
    noise = np.random.default_rng(seed).normal(scale=0.002, size=N)
    noise -= noise.mean()
    hard = 1 + 0.2 * np.random.default_rng(99).normal(size=N)
    values: dict[str, object] = {
        "id": f"alc_{name}",
        "content_hash": f"{name}",
        "nbytes": 1000,
        "predicted_kl": kl / 1.2,
        "nll_N": ORIGINAL + 50 * (kl + noise),
        "kl_N": kl * hard / hard.mean(),
    }
    return Tried(name=name, kind=kind, **(values | more))  # type: ignore[arg-type]


@pytest.fixture
def tried() -> list[Tried]:
    rng = np.random.default_rng(5)
    drawn = []
    for number in range(20):
        kl = 0.09 * float(np.exp(rng.normal(scale=0.3)))
        seen = kl / 1.2 * float(np.exp(rng.normal(scale=0.04)))
        drawn.append(_tried(f"random-{number}", "random", kl, number, predicted_kl=seen, nbytes=998))
    return [
        _tried("uniform", "winner", 0.08, 30, uniform=True),
        _tried("optimal", "optimal", 0.04, 31, predicted_kl=0.025),
        _tried("manual", "manual", 0.07, 32, predicted_kl=None),
        *drawn,
    ]


def test_what_is_found(tried: list[Tried]) -> None:
    found = assess(tried, ORIGINAL, N_TOKENS)
    details = found.details
    assert json.loads(json.dumps(details)) == details
    assert details["recommended"] == "optimal"
    assert details["guard"]["keeps_challenger"] is True
    assert details["sentence"] == found.choice.sentence
    table = details["table"]
    assert [row["position"] for row in table] == list(range(24))
    assert table[0]["name"] == "original"
    assert "kl" not in table[0]
    assert table[1]["uniform"] is True
    assert table[4]["may_win"] is False
    assert table[2]["realised_over_predicted"] == pytest.approx(1.6)
    assert table[2]["excess_nll"]["value"] == pytest.approx(0.04)
    assert table[2]["ppl"] == pytest.approx(math.exp(table[0]["nll"] + 0.04))
    assert table[2]["kl_se"] == pytest.approx(tried[1].kl_N.std(ddof=1) / 4)


def test_who_is_compared_with_whom(tried: list[Tried]) -> None:
    comparisons = assess(tried, ORIGINAL, N_TOKENS).details["comparisons"]
    assert [(c["a"], c["b"]) for c in comparisons] == [
        ("optimal", "uniform"),
        ("manual", "uniform"),
        ("optimal", "manual"),
    ]
    first = comparisons[0]
    assert first["verdict"] == "better"
    assert first["excess_removed"] == pytest.approx(0.5)
    assert first["delta_nll"]["value"] == pytest.approx(-0.04)
    assert first["gain_percent"]["value"] == pytest.approx(100 * (1 - math.exp(-0.04)))
    assert first["more_bytes"] == 0


def test_predictions_are_checked_at_equal_bytes(tried: list[Tried]) -> None:
    small = _tried("tiny", "optimal", 3.0, 40, predicted_kl=0.01, nbytes=500)
    found = assess([*tried, small], ORIGINAL, N_TOKENS)
    # manual has no prediction, tiny is much smaller
    assert found.calibration.n == 22
    assert found.details["calibration"]["equal_bytes"] is True
    assert found.calibration.log_slope is not None
    assert 0.7 < found.calibration.log_slope.value < 1.1
    twice = assess([*tried, *tried], ORIGINAL, N_TOKENS)
    assert twice.calibration.n == 22
    sizes = [
        _tried(str(n), "uniform", 0.1 / n, n, nbytes=100 * n, uniform=True, predicted_kl=0.05 / n) for n in range(1, 8)
    ]
    spread = assess(sizes, ORIGINAL, N_TOKENS)
    assert spread.details["calibration"]["equal_bytes"] is False
    assert spread.calibration.n == 7


def test_random_allocations_show_what_choosing_is_worth(tried: list[Tried]) -> None:
    details = assess(tried, ORIGINAL, N_TOKENS).details
    drawn = [t.kl for t in tried if t.kind == "random"]
    assert details["random"]["n"] == 20
    assert details["random"]["kl"]["mean"] == pytest.approx(np.mean(drawn))
    assert details["random"]["better_than_challenger"] == sum(kl < 0.04 for kl in drawn)
    assert details["random"]["better_than_uniform"] == sum(kl < 0.08 for kl in drawn)
    (gap,) = details["optimism"]
    assert gap["name"] == "optimal"
    assert gap["gap"] == pytest.approx(1.6 / 1.2 - 1, abs=0.05)
    assert gap["low"] > 0


def test_little_is_said_of_little(tried: list[Tried]) -> None:
    alone = assess(tried[:1], ORIGINAL, N_TOKENS)
    assert alone.details["recommended"] == "uniform"
    assert alone.details["random"] is None
    assert alone.details["comparisons"] == alone.details["optimism"] == []
    assert alone.calibration.calibrated is None
    assert json.loads(json.dumps(alone.details)) == alone.details
    unpredicted = assess([tried[2], tried[0]], ORIGINAL, N_TOKENS)
    assert unpredicted.calibration.n == 1
    drawn = assess(tried[3:], ORIGINAL, N_TOKENS)
    assert drawn.choice is drawn.details["recommended"] is drawn.details["guard"] is None
    assert drawn.calibration.calibrated is True
    assert drawn.details["random"]["better_than_uniform"] is None
