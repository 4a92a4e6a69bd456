"""A plan as the terminal shows it: a row a step, the totals, the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from cli.output import duration, table

_COLUMNS = ("step", "what", "how many", "jobs", "time", "share", "RAM", "card", "disk")
_DAY_S = 86_400


def plan_table(plan: Mapping[str, Any]) -> Table:
    """One row a kind of step, and the totals."""
    steps: Sequence[Mapping[str, Any]] = plan["steps"]
    rows = [
        (
            step["step"],
            step["unit"],
            f"{step['count']:,}",
            f"{step['jobs']:,}",
            long_duration(step["seconds"]),
            "–" if step["share"] is None else f"{step['share']:.0%}",
            gigabytes(step["memory"]),
            gigabytes(step["device_memory"]),
            _disk(step),
        )
        for step in steps
    ]
    totals = plan["totals"]
    rows.append(
        (
            "total",
            "at the peak",
            "",
            f"{totals['jobs']:,}",
            long_duration(totals["seconds"]),
            "",
            gigabytes(totals["memory"]),
            gigabytes(totals["device_memory"]),
            gigabytes(totals["disk"]),
        )
    )
    shown = table(_COLUMNS, rows, title=_title(plan))
    for column in shown.columns[2:]:
        column.justify = "right"
    return shown


def plan_sentences(plan: Mapping[str, Any]) -> list[str]:
    """What the numbers rest on."""
    totals, sentences = plan["totals"], []
    if totals["cells"]:
        others = totals["cells"] - totals["grid_cells"]
        sentences.append(
            f"{plan['model']['n_matrices']:,} matrices make {totals['grid_cells']:,} experiments of the grid"
            + (f", and {others:,} of rank 0 and the baselines." if others else ".")
        )
    if totals["seconds"] is not None:
        between = f"{long_duration(totals['low_seconds'])} to {long_duration(totals['high_seconds'])}"
        idle = (
            f"; {long_duration(totals['idle_seconds'])} on a machine that does nothing else"
            if totals["idle_seconds"] < 0.9 * totals["seconds"]
            else ""
        )
        sentences.append(f"Time on one worker: {between}{idle}.")
    return sentences + [f"Note: {note}." for note in plan["notes"]]


def verdict(plan: Mapping[str, Any]) -> Text:
    """Whether it fits; what does not, and what would."""
    if plan["fits"]:
        return Text("It fits.", style="bold green")
    lines = "\n".join(f"  {finding['message']}" for finding in plan["findings"])
    return Text.assemble(("It does not fit:\n", "bold red"), lines)


def gigabytes(nbytes: int | None) -> str:
    """GB = 10⁹ bytes."""
    if nbytes is None:
        return "–"
    return f"{nbytes / 1e9:.2f} GB" if nbytes < 10**10 else f"{nbytes / 1e9:,.0f} GB"


def long_duration(seconds: float | None) -> str:
    """As ``duration``, with days."""
    if seconds is None or seconds < _DAY_S:
        return duration(seconds)
    hours = round(seconds / 3600)
    return f"{hours // 24:,} d {hours % 24:02d} h"


def _disk(step: Mapping[str, Any]) -> str:
    """What stays, and in brackets what is there meanwhile."""
    stays = gigabytes(step["disk"]) if step["disk"] else "–"
    return f"{stays} (+{gigabytes(step['scratch'])})" if step["scratch"] else stays


def _title(plan: Mapping[str, Any]) -> str:
    model, device = plan["model"], plan["device"]
    return f"{model['name']} on {device['name']} (times: {device['source']}; shapes: {model['origin']})"
