"""Fit: observed against predicted error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from web.figures.base import Column, Figure, Table, finite, in_order, matrix_label, spec_of
from web.formatting import number


@dataclass(frozen=True, slots=True)
class FittedCell:
    """One measurement and what the fit says of it."""

    layer_idx: int
    projection: str
    expert_idx: int
    b_q: int
    rank: int
    error: float | None
    predicted: float | None


def fit_figure(
    cells: Sequence[FittedCell], *, form: str = "", r2: float | None = None, cv_error: float | None = None
) -> Figure:
    """Log-log scatter with the line of a perfect fit."""
    title = "Error model: observed against predicted"
    table = Table(
        (
            Column("projection"),
            Column("layer"),
            Column("b_q", "count"),
            Column("rank", "count"),
            Column("observed", "number"),
            Column("predicted", "number"),
        ),
        tuple(
            (c.projection, matrix_label(c.layer_idx, c.expert_idx), c.b_q, c.rank, finite(c.error), finite(c.predicted))
            for c in cells
        ),
    )
    drawn = [c for c in cells if (finite(c.error) or 0) > 0 and (finite(c.predicted) or 0) > 0]
    if not drawn:
        return Figure("fit", title, "Nothing is fitted yet: the sweep comes first.", title, table)
    said = f"{form or 'fitted'} form, R² = {number(r2, 3)}"
    if cv_error is not None:
        said += f", root mean square of the log error when a config is left out {number(cv_error, 3)}"
    alt = f"Scatter of observed against predicted error on log axes, {len(drawn)} measurements; {said}."
    caption = f"{said}. Points on the line are predicted exactly."
    left_out = len(cells) - len(drawn)
    if left_out:
        caption += f" {left_out} cells are not drawn: their error or prediction is not above zero."
    return Figure("fit", title, caption, alt, table, _spec(drawn, alt), "canvas")


def _spec(cells: Sequence[FittedCell], alt: str) -> dict[str, object]:
    values = [
        {
            "projection": c.projection,
            "layer": matrix_label(c.layer_idx, c.expert_idx),
            "bq": c.b_q,
            "rank": c.rank,
            "observed": c.error,
            "predicted": c.predicted,
        }
        for c in cells
    ]
    numbers = [number for c in cells for number in (c.error, c.predicted) if number is not None]
    low, high = min(numbers) * 0.9, max(numbers) * 1.1
    axis = {"tickCount": 4, "format": ".0e", "grid": False}
    scale = {"type": "log", "domain": [low, high], "nice": False}
    line = {
        "data": {"values": [{"x": low, "y": low}, {"x": high, "y": high}]},
        "mark": {"type": "line", "strokeDash": [4, 3], "strokeWidth": 1, "opacity": 0.7, "color": "#8a96a3"},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "scale": scale},
            "y": {"field": "y", "type": "quantitative", "scale": scale},
        },
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 22, "opacity": 0.7},
        "encoding": {
            "x": {
                "field": "predicted",
                "type": "quantitative",
                "scale": scale,
                "axis": {"title": "predicted error", **axis},
            },
            "y": {
                "field": "observed",
                "type": "quantitative",
                "scale": scale,
                "axis": {"title": "observed error", **axis},
            },
            "color": {
                "field": "projection",
                "type": "nominal",
                "sort": in_order(c.projection for c in cells),
                "legend": {"orient": "right", "title": None},
            },
            "tooltip": [
                {"field": "projection", "type": "nominal"},
                {"field": "layer", "type": "nominal"},
                {"field": "bq", "type": "quantitative", "title": "b_q"},
                {"field": "rank", "type": "quantitative"},
                {"field": "observed", "type": "quantitative", "format": ".3e"},
                {"field": "predicted", "type": "quantitative", "format": ".3e"},
            ],
        },
    }
    return spec_of(alt, values, width=300, height=240, layer=[line, points])
