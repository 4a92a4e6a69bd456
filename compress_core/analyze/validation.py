"""What a validation says: who is kept, how true the predictions were, and how all compare, as plain numbers.

Torch-free. Shapes: N windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress_core.analyze.calibration import CalibrationCheck, check_calibration, near_bytes, optimism
from compress_core.analyze.choice import Candidate, Choice, choose, paired_gain
from compress_core.evaluate.interval import compare, mean_interval

Array = NDArray[np.float64]

#: kinds of allocations that are there to compare prediction and reality over
RANDOM = "random"
COMPARISON_KINDS = (RANDOM, "near_optimal")
_NOTHING_TO_CHOOSE = "Only allocations for comparison were tried: there is nothing to choose."


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """An allocation that was run on N windows."""

    id: str
    name: str
    kind: str
    #: equal for allocations of equal items
    content_hash: str
    #: of its matrices
    nbytes: int
    #: (N,) nats, summed over each window's predicted tokens
    nll_N: Array
    #: (N,) mean over each window's positions, nats a token
    kl_N: Array
    #: nats a token; None: not predicted
    predicted_kl: float | None = None
    #: one config for all matrices
    uniform: bool = False
    #: bytes that its matrices were allowed
    budget: int | None = None

    @property
    def may_win(self) -> bool:
        return self.kind not in COMPARISON_KINDS

    @property
    def kl(self) -> float:
        """Joint KL over all windows, nats a token."""
        return float(self.kl_N.mean())


@dataclass(frozen=True, slots=True)
class Assessment:
    """The findings, and everything that the page shows of them as JSON-able values."""

    #: None where there are only allocations that are there for comparison
    choice: Choice | None
    calibration: CalibrationCheck
    #: table, comparisons, guard, random, optimism, calibration, recommended, sentence
    details: dict[str, Any]


def assess(tried: Sequence[Tried], original_N: Array, n_tokens_N: NDArray[np.int64], *, seed: int = 0) -> Assessment:
    """Compare allocations that were run on the same windows.

    Predictions are checked over distinct allocations of equal bytes (within 2 % of the largest) where there are enough
    of them, else over all, which the details say.

    Args:
        original_N: loss of the original model in each window, nats.
        n_tokens_N: predicted tokens of each window.
        seed: of the bootstrap.

    Raises:
        ConfigError: fewer than two windows.
    """
    candidates = [Candidate(t.name, t.nbytes, t.nll_N, t.uniform, t.may_win, t.budget) for t in tried]
    choice = choose(candidates, n_tokens_N) if any(t.may_win for t in tried) else None
    check, equal_bytes = _check(tried, seed)
    details = {
        "table": _table(tried, original_N, n_tokens_N),
        "comparisons": _comparisons(tried, choice, original_N, n_tokens_N),
        "guard": None if choice is None else _guard(tried, choice),
        "random": _random(tried, choice, n_tokens_N),
        "optimism": _optimism(tried),
        "calibration": check.to_dict() | {"equal_bytes": equal_bytes},
        "recommended": None if choice is None else tried[choice.winner].name,
        "sentence": _NOTHING_TO_CHOOSE if choice is None else choice.sentence,
    }
    return Assessment(choice, check, details)


def _check(tried: Sequence[Tried], seed: int) -> tuple[CalibrationCheck, bool]:
    distinct = list({t.content_hash: t for t in tried if t.predicted_kl is not None}.values())
    near = [distinct[number] for number in near_bytes([t.nbytes for t in distinct])]
    equal_bytes = 2 * len(near) > len(distinct)
    chosen = near if equal_bytes else distinct
    predicted = np.array([t.predicted_kl for t in chosen], dtype=np.float64)
    realised = np.stack([t.kl_N for t in chosen]) if chosen else np.zeros((0, 2))
    return check_calibration(predicted, realised, seed=seed), equal_bytes


def _table(tried: Sequence[Tried], original_N: Array, n_tokens_N: NDArray[np.int64]) -> list[dict[str, Any]]:
    """A row each, the original model first."""
    rows = [_row(0, "original", "original", original_N, n_tokens_N)]
    for position, t in enumerate(tried, 1):
        excess = compare(original_N, t.nll_N, n_tokens_N).difference
        rows.append(
            _row(position, t.name, t.kind, t.nll_N, n_tokens_N)
            | {
                "allocation_id": t.id,
                "content_hash": t.content_hash,
                "uniform": t.uniform,
                "may_win": t.may_win,
                "matrix_bytes": t.nbytes,
                "budget": t.budget,
                "predicted_kl": t.predicted_kl,
                "kl": t.kl,
                "kl_se": float(t.kl_N.std(ddof=1)) / math.sqrt(t.kl_N.size),
                "realised_over_predicted": t.kl / t.predicted_kl if t.predicted_kl else None,
                "excess_nll": {"value": excess.estimate, "low": excess.low, "high": excess.high},
            }
        )
    return rows


def _row(position: int, name: str, kind: str, nll_N: Array, n_tokens_N: NDArray[np.int64]) -> dict[str, Any]:
    loss = mean_interval(nll_N, n_tokens_N)
    return {
        "position": position,
        "name": name,
        "kind": kind,
        "nll": loss.estimate,
        "ppl": math.exp(loss.estimate),
        "ppl_low": math.exp(loss.low),
        "ppl_high": math.exp(loss.high),
    }


def _comparisons(
    tried: Sequence[Tried], choice: Choice | None, original_N: Array, n_tokens_N: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Everyone that may win against the best uniform one, and the best challenger against all others."""
    if choice is None:
        return []
    able = [number for number, t in enumerate(tried) if t.may_win]
    pairs = [(number, choice.uniform) for number in able if choice.uniform is not None and number != choice.uniform]
    if choice.challenger is not None:
        pairs += [(choice.challenger, number) for number in able if number not in (choice.challenger, choice.uniform)]
    return [_comparison(tried, a, b, original_N, n_tokens_N) for a, b in pairs]


def _comparison(
    tried: Sequence[Tried], a: int, b: int, original_N: Array, n_tokens_N: NDArray[np.int64]
) -> dict[str, Any]:
    """a against b: a positive gain says that a is better."""
    gain = paired_gain(tried[a].nll_N, tried[b].nll_N, n_tokens_N)
    difference = compare(tried[b].nll_N, tried[a].nll_N, n_tokens_N).difference
    excess = float(tried[b].nll_N.sum() - original_N.sum())
    verdict = "not distinguishable"
    if gain.low == gain.high == 0:
        verdict = "the same model"
    elif gain.low > 0 or gain.high < 0:
        verdict = "better" if gain.low > 0 else "worse"
    return {
        "a": tried[a].name,
        "b": tried[b].name,
        "a_position": a + 1,
        "b_position": b + 1,
        "more_bytes": tried[a].nbytes - tried[b].nbytes,
        "delta_nll": {"value": difference.estimate, "low": difference.low, "high": difference.high},
        "gain_percent": asdict(gain),
        # of what b loses to the original; None where b loses nothing
        "excess_removed": float((tried[b].nll_N - tried[a].nll_N).sum()) / excess if excess > 0 else None,
        "verdict": verdict,
    }


def _guard(tried: Sequence[Tried], choice: Choice) -> dict[str, Any]:
    def name(number: int | None) -> str | None:
        return None if number is None else tried[number].name

    return {
        "kept": name(choice.winner),
        "uniform": name(choice.uniform),
        "challenger": name(choice.challenger),
        "keeps_challenger": choice.challenger is not None and choice.winner == choice.challenger,
        "gain_percent": None if choice.gain_percent is None else asdict(choice.gain_percent),
        "confidence": choice.confidence,
        "sentence": choice.sentence,
    }


def _random(tried: Sequence[Tried], choice: Choice | None, n_tokens_N: NDArray[np.int64]) -> dict[str, Any] | None:
    """How random allocations of these bytes do: what choosing at all is worth."""
    drawn = [t for t in tried if t.kind == RANDOM]
    if not drawn:
        return None
    losses = np.array([t.nll_N.sum() / n_tokens_N.sum() for t in drawn])
    kls = np.array([t.kl for t in drawn])
    best = drawn[int(losses.argmin())]

    def better(number: int | None) -> int | None:
        return None if number is None else int((losses < tried[number].nll_N.sum() / n_tokens_N.sum()).sum())

    return {
        "n": len(drawn),
        "kl": _spread(kls),
        "nll": _spread(losses),
        "ppl": math.exp(float(losses.mean())),
        "best": best.name,
        "better_than_challenger": None if choice is None else better(choice.challenger),
        "better_than_uniform": None if choice is None else better(choice.uniform),
    }


def _spread(values: Array) -> dict[str, float | None]:
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if values.size > 1 else None,
        "low": float(values.min()),
        "high": float(values.max()),
    }


def _optimism(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """Of each chosen allocation: how much further it is from its prediction than random ones are from theirs."""
    drawn = [t for t in tried if t.kind == RANDOM and t.predicted_kl is not None]
    found = []
    for t in tried:
        if not t.may_win or t.uniform or t.predicted_kl is None:
            continue
        gap = optimism(t.predicted_kl, t.kl, [d.predicted_kl or 0.0 for d in drawn], [d.kl for d in drawn])
        if gap is not None:
            found.append({"name": t.name} | asdict(gap))
    return found
