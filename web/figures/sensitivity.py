"""Sensitivity: how many nats of KL a unit of error costs, by layer and projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from web.figures.base import (
    Column,
    Figure,
    Table,
    every_label,
    finite,
    geometric_mean,
    in_order,
    layers_of,
    log_colour,
    matrix_label,
    spec_of,
    step,
)
from web.formatting import number


@dataclass(frozen=True, slots=True)
class AnchorResult:
    """KL of the model's output with this matrix alone compressed at one anchor; None = not measured yet."""

    layer_idx: int
    projection: str
    expert_idx: int
    anchor: str | None
    #: nats a token
    kl: float | None
    kl_se: float | None
    #: kl / calibration_weighted_error
    sensitivity: float | None


def sensitivity_figure(results: Sequence[AnchorResult]) -> Figure:
    """Layers by projections; colour: sensitivity, averaged over the anchors in log."""
    title = "Sensitivity of every matrix"
    table = Table(
        (
            Column("projection"),
            Column("layer"),
            Column("anchor"),
            Column("KL, nats/token", "number"),
            Column("± standard error", "number"),
            Column("sensitivity, nats/unit error", "number"),
        ),
        tuple(
            (r.projection, matrix_label(r.layer_idx, r.expert_idx), r.anchor, r.kl, r.kl_se, r.sensitivity)
            for r in results
        ),
    )
    means = _means(results)
    drawn = {matrix: mean for matrix, mean in means.items() if mean is not None}
    if not drawn:
        return Figure("sensitivity", title, "Nothing is measured yet: the sensitivity job fills this in.", title, table)
    low, high = min(drawn, key=lambda m: drawn[m]), max(drawn, key=lambda m: drawn[m])
    ratio = drawn[high] / drawn[low]
    caption = (
        f"Nats of KL per unit of calibration-weighted error. {_name(high)} is the most sensitive matrix, {_name(low)} "
        f"the least: a factor of {number(ratio, 3)}."
    )
    alt = (
        f"Heatmap of sensitivity, layer by projection, {len(drawn)} of {len(means)} matrices measured. "
        f"Highest: {_name(high)} with {number(drawn[high], 3)}; lowest: {_name(low)} with {number(drawn[low], 3)}."
    )
    return Figure("sensitivity", title, caption, alt, table, _spec(means, alt))


def _name(matrix: tuple[int, str, int]) -> str:
    layer_idx, projection, expert_idx = matrix
    return f"{matrix_label(layer_idx, expert_idx)}.{projection}"


def _means(results: Sequence[AnchorResult]) -> dict[tuple[int, str, int], float | None]:
    by_matrix: dict[tuple[int, str, int], list[float]] = {}
    for r in results:
        found = by_matrix.setdefault((r.layer_idx, r.projection, r.expert_idx), [])
        if finite(r.sensitivity) is not None and r.sensitivity is not None:
            found.append(r.sensitivity)
    return {matrix: geometric_mean([v for v in values if v > 0]) for matrix, values in by_matrix.items()}


def _spec(means: dict[tuple[int, str, int], float | None], alt: str) -> dict[str, object]:
    values = [
        {
            "projection": projection,
            "layer": matrix_label(layer_idx, expert_idx),
            "sensitivity": mean,
            "status": "not measured" if mean is None else "measured",
        }
        for (layer_idx, projection, expert_idx), mean in means.items()
    ]
    layers = in_order(str(v["layer"]) for v in sorted(values, key=lambda v: _layer_order(str(v["layer"]))))
    x = {
        "field": "projection",
        "type": "nominal",
        "sort": in_order(projection for _, projection, _ in means),
        "axis": every_label(None, labelAngle=0),
    }
    y = {"field": "layer", "type": "nominal", "sort": layers, "axis": every_label("layer")}
    measured = {
        "transform": [{"filter": "datum.status === 'measured'"}],
        "mark": {"type": "rect"},
        "encoding": {
            "x": x,
            "y": y,
            "color": {"field": "sensitivity", **log_colour("nats per unit of error", ".2~g")},
            "tooltip": [
                {"field": "projection", "type": "nominal"},
                {"field": "layer", "type": "nominal"},
                {"field": "sensitivity", "type": "quantitative", "format": ".3~g"},
            ],
        },
    }
    height = step(len(layers), 240, 10, 28)
    return spec_of(alt, values, width={"step": 46}, height={"step": height}, layer=layers_of(measured, values, x, y))


def _layer_order(label: str) -> tuple[int, ...]:
    return tuple(int(part) for part in label.split("·"))
