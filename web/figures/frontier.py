"""Frontier: the least objective at every number of bytes, beside the uniform configs and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from web.figures.base import Column, Figure, Table, spec_of
from web.formatting import number, size


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """An allocation by its bytes and what the objective says of it."""

    #: "frontier", "uniform", or the name of an allocation of the study
    name: str
    #: "frontier", "uniform" or "optimal"
    role: str
    nbytes: int
    bits_per_weight: float
    objective: float


def frontier_figure(points: Sequence[FrontierPoint], *, unit: str = "", missing: str = "") -> Figure:
    """Lines of the frontier and of the uniform ladder over bits a weight, log scale, and marks for the choices.

    Args:
        unit: what the objective is measured in, such as "nats of KL a token".
        missing: why there are no points although something is allocated.
    """
    title = "The frontier: what every byte could buy"
    table = Table(
        (
            Column("allocation"),
            Column("bytes", "size"),
            Column("bits/weight", "number"),
            Column("objective", "number"),
        ),
        tuple((p.name, p.nbytes, p.bits_per_weight, p.objective) for p in points),
    )
    drawn = [p for p in points if p.objective > 0]
    chosen = [p for p in drawn if p.role == "optimal"]
    if not drawn:
        caption = f"There is no frontier: {missing}" if missing else "Nothing is allocated yet: the sweep comes first."
        return Figure("frontier", title, caption, f"{title}. {caption}", table)
    said = "; ".join(
        f"{p.name}: {number(p.objective, 3)} at {size(p.nbytes)} ({number(p.bits_per_weight, 3)} bits a weight)"
        for p in chosen
    )
    alt = f"Lines of the objective over bits a weight on a log scale: optimal allocations and uniform configs. {said}."
    caption = (
        f"The objective{f', {unit},' if unit else ''} of allocations that are optimal for their bytes, by the measured "
        f"errors, and of the grid's uniform configs. {said}."
    )
    return Figure("frontier", title, caption, alt, table, _spec(drawn, alt, unit))


def _spec(points: Sequence[FrontierPoint], alt: str, unit: str) -> dict[str, object]:
    values = [
        {
            "allocation": p.name,
            "role": p.role,
            "bits": p.bits_per_weight,
            "size": size(p.nbytes),
            "objective": p.objective,
        }
        for p in points
    ]
    x = {
        "field": "bits",
        "type": "quantitative",
        "scale": {"zero": False, "nice": False, "padding": 10},
        "axis": {"title": "bits a weight", "tickCount": 6, "grid": False},
    }
    y = {
        "field": "objective",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "padding": 10},
        "axis": {"title": unit or "objective", "tickCount": 4, "format": "~g", "grid": True},
    }
    colour = {
        "field": "role",
        "type": "nominal",
        "scale": {"domain": ["optimal", "uniform", "frontier"]},
        "legend": {"orient": "top", "title": None},
    }
    tooltip = [
        {"field": "allocation", "type": "nominal"},
        {"field": "size", "type": "nominal"},
        {"field": "bits", "type": "quantitative", "format": ".3f", "title": "bits/weight"},
        {"field": "objective", "type": "quantitative", "format": ".4~g"},
    ]
    encoding = {"x": x, "y": y, "color": colour}
    line = {
        "transform": [{"filter": "datum.role === 'frontier'"}],
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": encoding | {"tooltip": tooltip},
    }
    ladder = {
        "transform": [{"filter": "datum.role === 'uniform'"}],
        "mark": {"type": "point", "filled": True, "size": 46, "shape": "square"},
        "encoding": encoding | {"tooltip": tooltip},
    }
    marks = {
        "transform": [{"filter": "datum.role === 'optimal'"}],
        "mark": {"type": "point", "filled": True, "size": 110, "shape": "diamond"},
        "encoding": encoding | {"tooltip": tooltip},
    }
    return spec_of(alt, values, width=300, height=210, layer=[line, ladder, marks])
