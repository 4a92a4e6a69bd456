"""An allocation and a frontier as the terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from cli.output import table

#: the projections of a decoder layer, in its order
_PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def allocation_table(allocation: Mapping[str, Any]) -> Table:
    """One row a layer (and expert), one column a projection: bits of Q and rank."""
    rows: dict[tuple[int, int], dict[str, str]] = {}
    for item in allocation["items"]:
        row = rows.setdefault((item["layer_idx"], item["expert_idx"]), {})
        row[item["projection"]] = f"{item['b_q']}b" + (f" r{item['rank']}" if item["rank"] else "")
    named = [name for name in _PROJECTIONS if any(name in row for row in rows.values())]
    has_experts = any(expert >= 0 for _, expert in rows)
    columns = ["layer", *(["expert"] if has_experts else []), *named]
    lines = [
        [str(layer), *([str(expert) if expert >= 0 else "–"] if has_experts else []), *(row.get(n, "–") for n in named)]
        for (layer, expert), row in sorted(rows.items())
    ]
    return table(columns, lines, title=f"{allocation['name']} ({allocation['kind']}): bits of Q and rank")


def allocation_sentences(allocation: Mapping[str, Any]) -> list[str]:
    """What it takes, what it promises, how sure that is."""
    sentences = [
        f"{allocation['total_bytes']:,} bytes in scope {allocation['scope']}"
        + ("" if allocation["budget_bytes"] is None else f" of {allocation['budget_bytes']:,}")
        + f", {allocation['bits_per_weight']:.4g} bits a weight, "
        + _counted(allocation["n_distinct_configs"], "distinct config")
        + "."
    ]
    nats = allocation["objective"] != "error"
    if allocation["objective_value"] is not None:
        unit = " nats a token" if nats else ""
        sentence = f"Objective {allocation['objective']}: {allocation['objective_value']:.6g}{unit}"
        if allocation["optimal"]:
            sentence += f", proven optimal ({allocation['details']['proof']})"
        elif allocation["optimal"] is False:
            sentence += f", not proven: no allocation is below {allocation['lower_bound']:.6g}"
        sentences.append(sentence + ".")
    if allocation["shadow_price"]:
        # a slope at this budget, not what a whole MB saves: that may be more than a small model has
        unit = " nats a token" if nats else ""
        sentences.append(f"At this budget further bytes save {1e6 * allocation['shadow_price']:.4g}{unit} per MB.")
    if allocation["predicted_kl"] is not None and allocation["objective"] != "kl":
        sentences.append(f"Predicted KL: {allocation['predicted_kl']:.6g} nats a token.")
    if len(ids := allocation.get("allocation_ids", [])) > 1:
        sentences.append(f"{len(ids)} allocations were written; the first is shown.")
    return sentences


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def frontier_table(answer: Mapping[str, Any]) -> Table:
    """The supported points by rising bytes, with the price of a byte."""
    rows = [
        (
            f"{point['total_bytes']:,}",
            f"{point['bits_per_weight']:.4f}",
            f"{point['objective_value']:.6g}",
            "–" if point["shadow_price"] is None else f"{1e6 * point['shadow_price']:.4g}",
        )
        for point in answer["points"]
    ]
    title = f"{len(rows)} of {answer['n_points']} optimal points, scope {answer['scope']}"
    return _numbers(table(("bytes", "bits/weight", f"objective {answer['objective']}", "per MB"), rows, title=title))


def uniform_table(answer: Mapping[str, Any]) -> Table:
    """One config everywhere, for comparison; beside it what no allocation of these bytes is below."""
    rows = [
        (
            _config(uniform["config"]),
            f"{uniform['total_bytes']:,}",
            f"{uniform['bits_per_weight']:.4f}",
            f"{uniform['objective_value']:.6g}",
            "–" if uniform["lower_bound"] is None else f"{uniform['lower_bound']:.6g}",
        )
        for uniform in answer["uniform"]
    ]
    columns = ("uniform", "bytes", "bits/weight", f"objective {answer['objective']}", "at best at these bytes")
    return _numbers(table(columns, rows, title="One config everywhere"), first=1)


def _config(fields: Mapping[str, Any]) -> str:
    rank = f" r{fields['rank']} f{fields['factor_bits']}" if fields["rank"] else ""
    return f"{fields['codebook']} {fields['b_q']}b{rank}"


def _numbers(shown: Table, *, first: int = 0) -> Table:
    for column in shown.columns[first:]:
        column.justify = "right"
    return shown
