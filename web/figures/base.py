"""What every figure has: a spec, a table with the same numbers, a title, a caption and a text for who cannot see it.

Specs carry their data inline and no colours of text or background: the page lends them its theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

VEGA_LITE_MAJOR = 6
SCHEMA = f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE_MAJOR}.json"

#: three strokes that fill a square: a cell that was not measured
HATCH = "M-1,0L0,-1M-1,1L1,-1M0,1L1,0"

Spec = dict[str, Any]
CellKind = Literal["text", "count", "number", "size"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table view; ``kind`` says how its values are written."""

    label: str
    kind: CellKind = "text"


@dataclass(frozen=True, slots=True)
class Table:
    """The numbers of a figure; None is "not measured"."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart and its table; ``spec`` is None while there is nothing to draw, and the caption says what is missing."""

    name: str
    title: str
    caption: str
    alt: str
    table: Table
    spec: Spec | None = None
    renderer: Literal["svg", "canvas"] = "svg"


def spec_of(alt: str, values: Iterable[dict[str, Any]], **rest: Any) -> Spec:
    """A spec with the schema, the description and inline data."""
    return {"$schema": SCHEMA, "description": alt, "data": {"values": list(values)}, **rest}


def matrix_label(layer_idx: int, expert_idx: int) -> str:
    """Row label within a projection: the layer, and the expert where there are any."""
    return str(layer_idx) if expert_idx < 0 else f"{layer_idx}·{expert_idx}"


def in_order(names: Iterable[str]) -> list[str]:
    """Distinct names in order of first appearance."""
    return list(dict.fromkeys(names))


def finite(value: float | None) -> float | None:
    """None for NaN and infinities, which JSON does not know."""
    return value if value is not None and math.isfinite(value) else None


def step(n: int, room: int, smallest: int, largest: int) -> int:
    """Pixels a cell so that n of them fill the room, within bounds."""
    return max(smallest, min(largest, room // max(n, 1)))


def every_label(title: str | None, **rest: Any) -> Spec:
    """An axis that drops no label."""
    return {"title": title, "labelOverlap": False, "ticks": False, "domain": False, **rest}


def log_colour(title: str, legend_format: str = ".0e", **rest: Any) -> Spec:
    """A logarithmic, perceptually uniform, colour-blind-safe colour scale with its legend at the top."""
    legend = {"orient": "top", "format": legend_format, "gradientLength": 220, "gradientThickness": 10, "tickCount": 4}
    return {
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "scheme": "viridis"},
        "legend": legend | rest,
    }


def layers_of(measured: Spec, values: Sequence[dict[str, Any]], x: Spec, y: Spec) -> list[Spec]:
    """The measured cells, and over them the hatched ones where there are any, with a legend entry of their own."""
    if all(value["status"] == "measured" for value in values):
        return [measured]
    hatched = {
        "transform": [{"filter": "datum.status === 'not measured'"}],
        "mark": {"type": "point", "strokeWidth": 1, "opacity": 0.55, "filled": False, "size": 110},
        "encoding": {
            "x": x,
            "y": y,
            "shape": {
                "field": "status",
                "type": "nominal",
                "scale": {"domain": ["not measured"], "range": [HATCH]},
                "legend": {"orient": "top", "title": None},
            },
            "tooltip": [
                {"field": "projection", "type": "nominal"},
                {"field": "layer", "type": "nominal"},
                {"field": "status", "type": "nominal", "title": "state"},
            ],
        },
    }
    return [measured, hatched]


def geometric_mean(values: Sequence[float]) -> float | None:
    """exp of the mean log; None where a value is not above zero."""
    if not values or any(value <= 0 for value in values):
        return None
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))
