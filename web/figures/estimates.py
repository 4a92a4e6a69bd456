"""Estimates: the sensitivity of every matrix with its interval, by layer, a panel a projection, a colour a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from web.figures.base import Column, Figure, Table, geometric_mean, in_order, matrix_label, spec_of
from web.formatting import number

#: what people read; the first is the one that allocations go by
METHODS = {
    "kl_anchor": "KL anchors",
    "fisher_output": "Fisher of outputs",
    "fisher_diagonal": "diagonal Fisher",
    "higgs": "noise (HIGGS)",
    "reanchored": "re-anchored",
}

_KINDS = {"all": "all", "rank0": "rank 0", "low_rank": "with low rank"}


@dataclass(frozen=True, slots=True)
class Estimated:
    """a_i by one method: nats of KL per unit of error, shrunk toward the projection's mean."""

    layer_idx: int
    projection: str
    expert_idx: int
    method: str
    value: float
    low: float
    high: float
    #: with the matrix alone compressed, before shrinking; None where it has no anchor of its own
    raw: float | None
    #: of the matrix's own anchors, 0 to 1
    own_weight: float
    #: "all", or the kind of configs that it speaks of: "rank0" or "low_rank"
    applies_to: str = "all"


def estimates_figure(estimates: Sequence[Estimated]) -> Figure:
    """Small multiples by projection; several methods are drawn over their own means, since their units differ."""
    title = "How sure the sensitivities are"
    table = Table(
        (
            Column("projection"),
            Column("layer"),
            Column("method"),
            Column("configs"),
            Column("sensitivity", "number"),
            Column("95 % low", "number"),
            Column("95 % high", "number"),
            Column("measured alone", "number"),
            Column("own share", "number"),
        ),
        tuple(
            (
                e.projection,
                matrix_label(e.layer_idx, e.expert_idx),
                METHODS.get(e.method, e.method),
                _KINDS.get(e.applies_to, e.applies_to),
                *(e.value, e.low, e.high, e.raw, e.own_weight),
            )
            for e in estimates
        ),
    )
    # what configs of each kind cost is in the table; drawn is the matrix as a whole
    estimates = [e for e in estimates if e.applies_to == "all"] or estimates
    if not estimates:
        caption = "Nothing is estimated yet: the sensitivity job concludes with it."
        return Figure("estimates", title, caption, title, table)
    methods = [m for m in METHODS if any(e.method == m for e in estimates)]
    several = len(methods) > 1
    widths = {m: _typical_factor([e for e in estimates if e.method == m]) for m in methods}
    said = ", ".join(f"{METHODS[m]}: 95 % within a factor of {number(widths[m], 3)}" for m in methods)
    unit = "each method over its own mean" if several else "nats of KL per unit of calibration-weighted error"
    caption = f"Points with 95 % intervals, {unit}, log scale. Typical intervals: {said}."
    alt = (
        f"Small multiples of sensitivity by layer, one panel a projection, {len(estimates)} estimates by "
        f"{', '.join(METHODS[m] for m in methods)}. Typical intervals: {said}."
    )
    return Figure("estimates", title, caption, alt, table, _spec(estimates, methods, alt, several=several))


def _typical_factor(estimates: Sequence[Estimated]) -> float | None:
    """From the low to the high end of the interval of a typical matrix, halved in log."""
    ratios = [e.high / e.low for e in estimates if 0 < e.low <= e.high]
    mean = geometric_mean(ratios)
    return None if mean is None else math.sqrt(mean)


def _spec(estimates: Sequence[Estimated], methods: list[str], alt: str, *, several: bool) -> dict[str, object]:
    means = {m: geometric_mean([e.value for e in estimates if e.method == m]) or 1.0 for m in methods}
    values = []
    for e in estimates:
        over = means[e.method] if several else 1.0
        values.append(
            {
                "projection": e.projection,
                "layer": e.layer_idx + (0.08 * e.expert_idx if e.expert_idx > 0 else 0),
                "label": matrix_label(e.layer_idx, e.expert_idx),
                "method": METHODS[e.method],
                "drawn": e.value / over,
                "low": e.low / over,
                "high": e.high / over,
                "value": e.value,
            }
        )
    n = len(methods)
    x = {
        "field": "x",
        "type": "quantitative",
        "axis": {"title": "layer", "tickMinStep": 1, "grid": False, "format": "d", "tickCount": 6},
        "scale": {"nice": False, "padding": 6},
    }
    y = {
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "padding": 6},
        "axis": {"title": None, "tickCount": 3, "format": "~g", "grid": False},
    }
    colour = {
        "field": "method",
        "type": "nominal",
        "scale": {"domain": list(METHODS.values())},
        "legend": {"orient": "top", "title": None, "values": [METHODS[m] for m in methods]} if several else None,
    }
    number_of = "{" + ",".join(f"'{METHODS[m]}':{i}" for i, m in enumerate(methods)) + "}"
    # methods stand beside each other within a layer
    shift = f"({number_of}[datum.method] - {(n - 1) / 2}) * {0.6 / max(n, 1)}"
    beside = [{"calculate": f"datum.layer + {shift}", "as": "x"}]
    layers = [
        {
            "mark": {"type": "rule", "strokeWidth": 1.4, "opacity": 0.75},
            "encoding": {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}, "color": colour},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 24, "opacity": 1},
            "encoding": {
                "x": x,
                "y": {"field": "drawn", **y},
                "color": colour,
                "tooltip": [
                    {"field": "projection", "type": "nominal"},
                    {"field": "label", "type": "nominal", "title": "layer"},
                    {"field": "method", "type": "nominal"},
                    {"field": "value", "type": "quantitative", "format": ".3~g", "title": "sensitivity"},
                ],
            },
        },
    ]
    return spec_of(
        alt,
        values,
        transform=beside,
        facet={
            "field": "projection",
            "type": "nominal",
            "sort": in_order(e.projection for e in estimates),
            "header": {"title": None, "labelFontWeight": "bold"},
        },
        columns=7,
        spacing=12,
        spec={"width": 126, "height": 110, "layer": layers},
    )
