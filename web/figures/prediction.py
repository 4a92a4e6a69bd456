"""Prediction: the joint KL that allocations really have against the KL that was predicted for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from web.figures.base import Column, Figure, Table, finite, in_order, spec_of
from web.formatting import number

#: of the marks, in the order of the theme's colours
_ROLES = ("optimal", "uniform", "random", "other")
_SHAPES = ("diamond", "square", "circle", "triangle-up")


@dataclass(frozen=True, slots=True)
class Validated:
    """One allocation of a validation."""

    #: which validation, such as "budget 1"
    budget: str
    name: str
    #: "optimal", "uniform", "random" or "other"
    role: str
    nbytes: int
    #: nats a token; None where there are no sensitivities
    predicted_kl: float | None
    kl: float
    #: standard error over windows
    kl_se: float
    ppl: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well one validation's predictions rank and size what was realised."""

    #: such as "budget 1"; empty where there is one
    budget: str
    n_windows: int
    spearman: float | None
    spearman_low: float | None
    spearman_high: float | None
    #: of log realised over log predicted KL
    slope: float | None
    #: geometric mean of realised / predicted KL
    kappa: float | None
    calibrated: bool | None

    def sentence(self) -> str:
        """The numbers in words."""
        where = f"{self.budget}: " if self.budget else ""
        if self.spearman is None:
            return f"{where}too few allocations to judge the prediction"
        said = (
            f"{where}rank correlation {number(self.spearman, 3)} "
            f"[{number(self.spearman_low, 3)}, {number(self.spearman_high, 3)}]"
        )
        if self.slope is not None and self.kappa is not None:
            said += f", slope {number(self.slope, 3)}, realised / predicted {number(self.kappa, 3)}"
        verdicts = {True: "the prediction holds", False: "the prediction does not hold", None: ""}
        verdict = verdicts[self.calibrated]
        return f"{said}: {verdict}" if verdict else said


def prediction_figure(items: Sequence[Validated], agreements: Sequence[Agreement]) -> Figure:
    """Log-log scatter, one panel a budget, with the line of a perfect prediction."""
    title = "Predicted against realised KL"
    table = Table(
        (
            Column("validation"),
            Column("allocation"),
            Column("bytes", "count"),
            Column("predicted KL", "number"),
            Column("realised KL", "number"),
            Column("± standard error", "number"),
            Column("PPL", "number"),
        ),
        tuple((i.budget, i.name, i.nbytes, i.predicted_kl, i.kl, i.kl_se, i.ppl) for i in items),
    )
    if not items:
        return Figure("prediction", title, "No choice is validated yet: the allocations come first.", title, table)
    said = "; ".join(agreement.sentence() for agreement in agreements)
    drawn = [i for i in items if (finite(i.predicted_kl) or 0) > 0 and (finite(i.kl) or 0) > 0]
    if not drawn:
        caption = "Nothing is predicted in nats: there are no KL sensitivities. The table has what was realised."
        return Figure("prediction", title, caption, f"{title}. {caption}", table)
    alt = f"Scatter of realised against predicted joint KL on log axes, {len(drawn)} allocations. {said}."
    caption = (
        f"Joint KL to the original on the select split, nats a token, of allocations of equal bytes; {said}. "
        "On the line the prediction is exact; bars are one standard error, often shorter than the mark."
    )
    return Figure("prediction", title, caption, alt, table, _spec(drawn, alt))


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in a range: the axis would label but the first few of its own."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [tick for power in powers for step in (1, 2, 5) if low <= (tick := float(f"{step}e{power}")) <= high]


def _spec(items: Sequence[Validated], alt: str) -> dict[str, object]:
    values = [
        {
            "budget": i.budget,
            "allocation": i.name,
            "role": i.role,
            "predicted": i.predicted_kl,
            "realised": i.kl,
            "low": max(i.kl - i.kl_se, i.kl / 10),
            "high": i.kl + i.kl_se,
            "ppl": i.ppl,
        }
        for i in items
    ]
    numbers = [x for i in items for x in (i.predicted_kl, i.kl) if x is not None]
    low, high = min(numbers) * 0.85, max(numbers) * 1.18
    axis = {"values": _ticks(low, high), "format": "~g", "grid": False}
    scale = {"type": "log", "domain": [low, high], "nice": False, "clamp": True}
    x = {
        "field": "predicted",
        "type": "quantitative",
        "scale": scale,
        "axis": {"title": "predicted KL, nats a token", **axis},
    }
    y = {"type": "quantitative", "scale": scale, "axis": {"title": "realised KL, nats a token", **axis}}
    roles = [role for role in _ROLES if any(i.role == role for i in items)]
    colour = {
        "field": "role",
        "type": "nominal",
        "scale": {"domain": list(_ROLES)},
        "legend": {"orient": "top", "title": None, "values": roles},
    }
    line = {
        "mark": {"type": "line", "strokeDash": [4, 3], "strokeWidth": 1, "opacity": 0.7, "color": "#8a96a3"},
        "data": {"values": [{"x": low, "y": low}, {"x": high, "y": high}]},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "scale": scale},
            "y": {"field": "y", "type": "quantitative", "scale": scale},
        },
    }
    bars = {
        "mark": {"type": "rule", "strokeWidth": 1, "opacity": 0.5},
        "encoding": {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}, "color": colour},
    }
    points = {
        "mark": {"type": "point", "filled": True, "opacity": 0.9},
        "encoding": {
            "x": x,
            "y": {"field": "realised", **y},
            "color": colour,
            "shape": {"field": "role", "type": "nominal", "scale": {"domain": list(_ROLES), "range": list(_SHAPES)}},
            "size": {
                "condition": {"test": "datum.role === 'random'", "value": 36},
                "value": 100,
            },
            "tooltip": [
                {"field": "allocation", "type": "nominal"},
                {"field": "predicted", "type": "quantitative", "format": ".4~g"},
                {"field": "realised", "type": "quantitative", "format": ".4~g"},
                {"field": "ppl", "type": "quantitative", "format": ".4~g", "title": "PPL"},
            ],
        },
    }
    panel = {"width": 225, "height": 210, "layer": [line, bars, points]}
    budgets = in_order(i.budget for i in items)
    if len(budgets) == 1:
        return spec_of(alt, values, **panel)
    header = {"title": None, "labelFontWeight": "bold"}
    return spec_of(
        alt,
        values,
        facet={"field": "budget", "type": "nominal", "sort": budgets, "header": header},
        columns=2,
        spacing=18,
        spec=panel,
    )
