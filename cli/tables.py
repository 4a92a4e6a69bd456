"""The gate table and the headline, as the terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from cli.output import table
from cli.watch.presenters import VERDICT_STYLES


def gate_table(gates: Sequence[Mapping[str, Any]]) -> Table:
    """One row a gate: what was found, what the plan asks for, what that means."""
    rows = [
        (
            str(gate["phase"]),
            gate["name"],
            Text(gate["verdict"], style=VERDICT_STYLES.get(gate["verdict"], "")),
            _value(gate),
            "–" if gate["threshold"] is None else f"{gate['threshold']:.4g}",
        )
        for gate in _in_order(gates)
    ]
    return table(("phase", "gate", "verdict", "value [95 % interval]", "threshold"), rows, title="Gates")


def gate_remarks(gates: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each gate that is not a GO: why, and what the plan does then."""
    remarks = []
    for gate in _in_order(gates):
        if gate["verdict"] != "GO":
            fallback = f" The plan then: {gate['fallback']}" if gate["verdict"] == "NO-GO" and gate["fallback"] else ""
            remarks.append(f"{gate['phase']} {gate['name']}: {gate['explanation']}{fallback}")
    return remarks


def _in_order(gates: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(gates, key=lambda gate: (gate["phase"], gate["id"]))


def headline_tables(headline: Mapping[str, Any]) -> list[Table]:
    """One table a budget: the original beside what fits into the budget."""
    return [_headline_table(entry) for entry in _entries(headline)]


def headline_sentences(headline: Mapping[str, Any]) -> list[str]:
    """Of each budget: does optimal beat the best uniform at no more bytes, what could any allocation gain, and which
    baselines does it not beat?"""
    sentences = []
    for entry in _entries(headline):
        sentences.append(
            entry.get("sentence") or "Optimal and uniform were not both evaluated: there is nothing to compare."
        )
        sentences += [entry["ceiling"]] if entry.get("ceiling") else []
        sentences += entry.get("remarks") or []
    return sentences


def _entries(headline: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The budgets; each inherits dataset and split from the top."""
    shared = {key: headline[key] for key in ("dataset", "split") if key in headline}
    return [shared | dict(entry) for entry in headline.get("budgets") or [headline]]


def _headline_table(entry: Mapping[str, Any]) -> Table:
    rows = [
        (
            row.get("label") or row["name"],
            _bytes(row.get("bytes")),
            _bytes(row.get("matrix_bytes")),
            "–" if row.get("bits_per_weight") is None else f"{row['bits_per_weight']:.3f}",
            "not measured" if row.get("ppl") is None else f"{row['ppl']:.4g}",
            _interval(row.get("ppl_low"), row.get("ppl_high"), "{:.4g}"),
        )
        for row in entry["rows"]
    ]
    budget = entry.get("budget_bytes")
    title = f"Perplexity on {entry.get('dataset', '?')} ({entry.get('split', '?')})"
    if budget is not None:
        title += f", budget {budget:,} bytes"
    shown = table(("model", "file bytes", "matrix bytes", "bits/weight", "PPL", "95 % interval"), rows, title=title)
    for column in shown.columns[1:]:
        column.justify = "right"
    return shown


def _value(gate: Mapping[str, Any]) -> str:
    if gate["value"] is None:
        return "–"
    unit = f" {gate['unit']}" if gate.get("unit") else ""
    if gate.get("ci_low") is None or gate.get("ci_high") is None:
        return f"{gate['value']:.4g}{unit}"
    return f"{gate['value']:.4g}{unit} [{gate['ci_low']:.4g}, {gate['ci_high']:.4g}]"


def _interval(low: float | None, high: float | None, form: str) -> str:
    return "–" if low is None or high is None else f"{form.format(low)} – {form.format(high)}"


def _bytes(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
