"""The study's result as the page tells it: the stored sentence, a verdict with its tone, the models compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from web.formatting import interval, number


@dataclass(frozen=True, slots=True)
class HeadlineRow:
    """One model of the comparison."""

    name: str
    label: str
    #: bytes of the weight files
    nbytes: int | None
    bits_per_weight: float | None
    ppl: float | None
    ppl_low: float | None
    ppl_high: float | None


@dataclass(frozen=True, slots=True)
class Headline:
    """Optimal against uniform at one budget."""

    #: "optimal is better", "optimal is worse", "not distinguishable", "not comparable" or "not measured"
    verdict: str
    sentence: str
    budget_bytes: int | None
    dataset: str | None
    #: the part of the dataset that judged; None where it is not recorded
    split: str | None
    #: share of uniform's loss against the original that optimal takes away
    excess_removed: float | None
    rows: tuple[HeadlineRow, ...]
    #: baselines at no more bytes that optimal does not beat
    remarks: tuple[str, ...] = ()
    #: what the original itself would gain
    ceiling: str | None = None
    #: how true the predictions were, in words; None where nothing was validated
    validation: str | None = None

    @property
    def tone(self) -> str:
        """good, bad, warn or quiet: the colour beside the words."""
        tones = {"optimal is better": "good", "optimal is worse": "bad", "not measured": "quiet"}
        return tones.get(self.verdict, "warn")


def headlines(stored: dict[str, Any] | None) -> tuple[Headline, ...]:
    """One headline a budget, from ``studies.headline``; empty while the study has none."""
    if not stored:
        return ()
    return tuple(_headline(entry) for entry in stored.get("budgets") or [stored])


def _headline(entry: dict[str, Any]) -> Headline:
    comparison = entry.get("optimal_vs_uniform") or {}
    # more bytes than uniform: whatever the numbers say, they prove nothing
    verdict = "not comparable" if comparison.get("fair") is False else comparison.get("verdict") or "not measured"
    return Headline(
        verdict=verdict,
        sentence=entry.get("sentence") or "Optimal and uniform are not both evaluated: there is nothing to compare.",
        budget_bytes=entry.get("budget_bytes"),
        dataset=entry.get("dataset"),
        split=entry.get("split"),
        excess_removed=comparison.get("excess_removed"),
        rows=tuple(_row(row) for row in entry.get("rows") or []),
        remarks=tuple(entry.get("remarks") or ()),
        ceiling=entry.get("ceiling"),
        validation=_validation(entry.get("validation")),
    )


def _validation(found: dict[str, Any] | None) -> str | None:
    if not found or found.get("spearman") is None:
        return None
    where = interval(found.get("spearman_low"), found.get("spearman_high"), 3)
    return (
        f"Predicted KL ranked {found['n_allocations']} allocations of these bytes with a correlation of "
        f"{number(found['spearman'], 3)} {where} on the select split."
    )


def _row(row: dict[str, Any]) -> HeadlineRow:
    return HeadlineRow(
        name=str(row.get("name")),
        label=str(row.get("label") or row.get("name")),
        nbytes=row.get("bytes"),
        bits_per_weight=row.get("bits_per_weight"),
        ppl=row.get("ppl"),
        ppl_low=row.get("ppl_low"),
        ppl_high=row.get("ppl_high"),
    )
