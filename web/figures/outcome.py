"""Outcome: perplexity with its interval beside the bytes, for every model of the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from web.figures.base import Column, Figure, Table, every_label, in_order, spec_of
from web.formatting import interval, number, size


@dataclass(frozen=True, slots=True)
class Outcome:
    """One evaluated model."""

    label: str
    dataset: str
    #: "original", "optimal", "uniform" or "baseline"
    role: str
    #: bytes of the weight files
    nbytes: int | None
    bits_per_weight: float | None
    ppl: float
    ppl_low: float
    ppl_high: float
    n_windows: int


def outcome_figure(outcomes: Sequence[Outcome]) -> Figure:
    """Left: PPL with its 95 % interval, log scale; right: bytes on disk."""
    title = "What the bytes buy: perplexity at equal size"
    table = Table(
        (
            Column("model"),
            Column("text"),
            Column("size", "size"),
            Column("bits/weight", "number"),
            Column("PPL", "number"),
            Column("95 % low", "number"),
            Column("95 % high", "number"),
            Column("windows", "count"),
        ),
        tuple(
            (o.label, o.dataset, o.nbytes, o.bits_per_weight, o.ppl, o.ppl_low, o.ppl_high, o.n_windows)
            for o in outcomes
        ),
    )
    if not outcomes:
        return Figure("outcome", title, "Nothing is evaluated yet.", title, table)
    said = "; ".join(
        f"{o.label} PPL {number(o.ppl)} {interval(o.ppl_low, o.ppl_high)} at {size(o.nbytes)}" for o in outcomes
    )
    alt = f"Dot plot of perplexity with 95 % intervals beside bytes. {said}."
    caption = (
        "Lower is better. Bars: 95 % interval over windows, each model by itself; the headline compares models "
        "window by window, which sees smaller differences."
    )
    return Figure("outcome", title, caption, alt, table, _spec(outcomes, alt))


def _spec(outcomes: Sequence[Outcome], alt: str) -> dict[str, object]:
    several = len({o.dataset for o in outcomes}) > 1
    values = [
        {
            "model": f"{o.label} · {o.dataset}" if several else o.label,
            "role": o.role,
            "ppl": o.ppl,
            "low": o.ppl_low,
            "high": o.ppl_high,
            "megabytes": None if o.nbytes is None else o.nbytes / 1e6,
            "size": size(o.nbytes),
            "bits": o.bits_per_weight,
        }
        for o in outcomes
    ]
    order = in_order(str(v["model"]) for v in values)
    y = {"field": "model", "type": "nominal", "sort": order, "axis": every_label(None, labelLimit=220)}
    colour = {
        "field": "role",
        "type": "nominal",
        "scale": {"domain": ["optimal", "uniform", "baseline", "original"]},
        "legend": None,
    }
    tooltip = [
        {"field": "model", "type": "nominal"},
        {"field": "ppl", "type": "quantitative", "format": ".4~g", "title": "PPL"},
        {"field": "low", "type": "quantitative", "format": ".4~g", "title": "95 % low"},
        {"field": "high", "type": "quantitative", "format": ".4~g", "title": "95 % high"},
        {"field": "size", "type": "nominal"},
        {"field": "bits", "type": "quantitative", "format": ".3f", "title": "bits/weight"},
    ]
    ppl_axis = {"title": "perplexity (log scale)", "tickCount": 5, "format": "~r", "grid": True}
    ppl_x = {"type": "quantitative", "scale": {"type": "log", "nice": False, "padding": 12}, "axis": ppl_axis}
    perplexity = {
        "width": 205,
        "height": {"step": 26},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2, "strokeCap": "round", "opacity": 0.75},
                "encoding": {"y": y, "x": {"field": "low", **ppl_x}, "x2": {"field": "high"}, "color": colour},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {"y": y, "x": {"field": "ppl", **ppl_x}, "color": colour, "tooltip": tooltip},
            },
        ],
    }
    bare_y = y | {"axis": None}
    bytes_x = {"field": "megabytes", "type": "quantitative", "axis": {"title": "MB on disk", "tickCount": 2}}
    bytes_panel = {
        "width": 95,
        "height": {"step": 26},
        "layer": [
            {
                "mark": {"type": "bar", "height": 9, "opacity": 0.8},
                "encoding": {"y": bare_y, "x": bytes_x, "color": colour, "tooltip": tooltip},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 10.5},
                "encoding": {"y": bare_y, "x": bytes_x, "text": {"field": "size", "type": "nominal"}},
            },
        ],
    }
    return spec_of(alt, values, hconcat=[perplexity, bytes_panel], spacing=14)
