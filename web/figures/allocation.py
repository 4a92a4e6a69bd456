"""Allocation strips: which config each matrix gets, side by side for the allocations that are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from web.figures.base import Column, Figure, Table, every_label, in_order, matrix_label, spec_of, step


@dataclass(frozen=True, slots=True)
class ChosenConfig:
    """The config of one matrix in one allocation."""

    allocation: str
    layer_idx: int
    projection: str
    expert_idx: int
    #: short name of the config
    config: str
    b_q: int
    rank: int
    nbytes: int
    #: 8·nbytes / weights of the matrix
    bits_per_weight: float | None


def allocation_figure(chosen: Sequence[ChosenConfig]) -> Figure:
    """One panel an allocation: layers by projections; colour: bits a weight; text: the config."""
    title = "Where the bytes go: uniform against optimal"
    table = Table(
        (
            Column("allocation"),
            Column("projection"),
            Column("layer"),
            Column("config"),
            Column("bytes", "count"),
            Column("bits/weight", "number"),
        ),
        tuple(
            (c.allocation, c.projection, matrix_label(c.layer_idx, c.expert_idx), c.config, c.nbytes, c.bits_per_weight)
            for c in chosen
        ),
    )
    if not chosen:
        return Figure("allocation", title, "Nothing is allocated yet: the fit comes first.", title, table)
    said = "; ".join(_summary(name, chosen) for name in in_order(c.allocation for c in chosen))
    alt = f"Grid of configs, layer by projection, one panel an allocation. {said}."
    caption = "Colour: bits a weight; cells: b_q and rank."
    if len({c.allocation for c in chosen}) <= 2:
        caption += f" {said}."
    return Figure(
        "allocation",
        title,
        caption,
        alt,
        table,
        _spec(chosen, alt),
    )


def _summary(name: str, chosen: Sequence[ChosenConfig]) -> str:
    """For example ``optimal: 21 × e8 2b r16 f4, 12 × e8 3b r0 and 3 more``."""
    counts = Counter(c.config for c in chosen if c.allocation == name).most_common()
    first = ", ".join(f"{n} × {config}" for config, n in counts[:3])
    return f"{name}: {first}" + (f" and {len(counts) - 3} more configs" if len(counts) > 3 else "")


def _spec(chosen: Sequence[ChosenConfig], alt: str) -> dict[str, object]:
    values = [
        {
            "allocation": c.allocation,
            "projection": c.projection,
            "layer": matrix_label(c.layer_idx, c.expert_idx),
            "config": c.config,
            "short": f"{c.b_q}b {c.rank}",
            "bits": c.bits_per_weight,
            "nbytes": c.nbytes,
        }
        for c in chosen
    ]
    layers = in_order(str(v["layer"]) for v in values)
    bits = [c.bits_per_weight for c in chosen if c.bits_per_weight is not None]
    middle = (min(bits) + max(bits)) / 2 if bits else 0.0
    high = step(len(layers), 240, 10, 24)
    x = {
        "field": "projection",
        "type": "nominal",
        "sort": in_order(c.projection for c in chosen),
        "axis": every_label(None, labelAngle=0),
    }
    y = {"field": "layer", "type": "nominal", "sort": layers, "axis": every_label("layer")}
    cells = {
        "mark": {"type": "rect"},
        "encoding": {
            "x": x,
            "y": y,
            "color": {
                "field": "bits",
                "type": "quantitative",
                "title": "bits a weight",
                "scale": {"scheme": "viridis", "zero": False},
                "legend": {"orient": "top", "gradientLength": 220, "gradientThickness": 10, "tickCount": 4},
            },
            "tooltip": [
                {"field": "allocation", "type": "nominal"},
                {"field": "projection", "type": "nominal"},
                {"field": "layer", "type": "nominal"},
                {"field": "config", "type": "nominal"},
                {"field": "bits", "type": "quantitative", "format": ".3f", "title": "bits/weight"},
                {"field": "nbytes", "type": "quantitative", "format": ",", "title": "bytes"},
            ],
        },
    }
    words = {
        "mark": {"type": "text", "fontSize": 9.5},
        "encoding": {
            "x": x,
            "y": y,
            "text": {"field": "short", "type": "nominal"},
            "color": {"condition": {"test": f"datum.bits > {middle}", "value": "#10202b"}, "value": "#f4f7f9"},
        },
    }
    # below 14 px a cell has no room for words; the tooltip and the table have them
    layer = [cells, words] if high >= 14 else [cells]
    return spec_of(
        alt,
        values,
        facet={
            "field": "allocation",
            "type": "nominal",
            "sort": in_order(c.allocation for c in chosen),
            "header": {"title": None, "labelFontWeight": "bold"},
        },
        columns=2,
        spacing=16,
        spec={"width": {"step": 36}, "height": {"step": high}, "layer": layer},
    )
