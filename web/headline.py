"""The study's result in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from web.formatting import interval, number, percent, size


@dataclass(frozen=True, slots=True)
class HeadlineRow:
    """One model of the comparison."""

    name: str
    label: str
    nbytes: int | None
    matrix_bytes: int | None
    bits_per_weight: float | None
    ppl: float | None
    ppl_low: float | None
    ppl_high: float | None


@dataclass(frozen=True, slots=True)
class Headline:
    """Optimal against uniform at one budget."""

    #: "better", "worse", "not distinguishable" or "not measured"
    verdict: str
    sentence: str
    budget_bytes: int | None
    rows: tuple[HeadlineRow, ...]

    @property
    def tone(self) -> str:
        """good, bad, warn or quiet: the colour beside the word."""
        return {"better": "good", "worse": "bad", "not distinguishable": "warn"}.get(self.verdict, "quiet")


def headlines(stored: dict[str, Any] | None) -> tuple[Headline, ...]:
    """One headline a budget, from ``studies.headline``; empty while the study has none."""
    if not stored:
        return ()
    return tuple(_headline(entry) for entry in stored.get("budgets") or [stored])


def _headline(entry: dict[str, Any]) -> Headline:
    rows = tuple(
        HeadlineRow(
            name=str(row.get("name")),
            label=str(row.get("label") or row.get("name")),
            nbytes=row.get("bytes"),
            matrix_bytes=row.get("matrix_bytes"),
            bits_per_weight=row.get("bits_per_weight"),
            ppl=row.get("ppl"),
            ppl_low=row.get("ppl_low"),
            ppl_high=row.get("ppl_high"),
        )
        for row in entry.get("rows") or []
    )
    comparison = entry.get("optimal_vs_uniform") or {}
    verdict = _verdict(str(comparison.get("verdict") or ""))
    return Headline(verdict, _sentence(verdict, comparison, rows), entry.get("budget_bytes"), rows)


def _verdict(text: str) -> str:
    known = ("not distinguishable", "better", "worse")
    return next((word for word in known if word in text), "not measured")


def _sentence(verdict: str, comparison: dict[str, Any], rows: tuple[HeadlineRow, ...]) -> str:
    by_name = {row.name: row for row in rows}
    optimal, uniform = by_name.get("optimal"), by_name.get("uniform")
    if verdict == "not measured" or optimal is None or uniform is None:
        return "Optimal and uniform are not both evaluated: there is nothing to compare."
    change, low, high = (comparison.get(key) for key in ("relative_ppl_change", "low", "high"))
    numbers = (
        f"PPL {number(optimal.ppl)} {interval(optimal.ppl_low, optimal.ppl_high)} in {size(optimal.nbytes)} against "
        f"{number(uniform.ppl)} {interval(uniform.ppl_low, uniform.ppl_high)} in {size(uniform.nbytes)}"
    )
    paired = f"{percent(change)}, 95 % interval {percent(low)} to {percent(high)}"
    if comparison.get("n_windows"):
        paired += f", {comparison['n_windows']} windows"
    said = {
        "better": "The optimal allocation is better than the best uniform one",
        "worse": "The optimal allocation is worse than the best uniform one",
        "not distinguishable": "The optimal allocation is not distinguishable from the best uniform one",
    }[verdict]
    return f"{said}: {numbers} ({paired})."
