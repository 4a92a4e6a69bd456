"""Fidelity: how true each block's output stays when the block alone is compressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from web.figures.base import Column, Figure, Table, spec_of
from web.formatting import number


@dataclass(frozen=True, slots=True)
class LayerFidelity:
    """One layer at one config; standard errors over sequences, None where they are not known."""

    layer_idx: int
    config: str
    cosine: float
    cosine_se: float | None
    #: ‖ŷ − y‖² / ‖y‖²
    relative_error: float
    relative_error_se: float | None


def fidelity_figure(layers: Sequence[LayerFidelity]) -> Figure:
    """Two panels by layer: 1 − cosine, and the relative error, with bars of one standard error."""
    title = "Fidelity of each layer alone"
    table = Table(
        (
            Column("layer", "count"),
            Column("config"),
            Column("cosine", "number"),
            Column("± cosine", "number"),
            Column("relative error", "number"),
            Column("± relative error", "number"),
        ),
        tuple((f.layer_idx, f.config, f.cosine, f.cosine_se, f.relative_error, f.relative_error_se) for f in layers),
    )
    if not layers:
        caption = "Not measured yet: sensitivity.fidelity names the config to measure it at."
        return Figure("fidelity", title, caption, title, table)
    worst = max(layers, key=lambda f: f.relative_error)
    best = min(layers, key=lambda f: f.relative_error)
    said = (
        f"layer {worst.layer_idx} errs most ({number(worst.relative_error, 3)}), layer {best.layer_idx} least "
        f"({number(best.relative_error, 3)})"
    )
    alt = f"Points by layer at {layers[0].config}: one minus cosine, and relative error of the block's output; {said}."
    caption = f"Every block's output with the block alone at {layers[0].config}: {said}. Bars: one standard error."
    return Figure("fidelity", title, caption, alt, table, _spec(layers, alt))


def _spec(layers: Sequence[LayerFidelity], alt: str) -> dict[str, object]:
    values = [
        {"layer": f.layer_idx, "measure": measure, "value": value, "low": value - se, "high": value + se}
        for f in layers
        for measure, value, se in (
            ("1 − cosine", 1 - f.cosine, f.cosine_se or 0.0),
            ("relative error", f.relative_error, f.relative_error_se or 0.0),
        )
    ]
    x = {
        "field": "layer",
        "type": "quantitative",
        "axis": {"title": "layer", "tickMinStep": 1, "grid": False, "format": "d", "tickCount": 6},
        "scale": {"nice": False, "padding": 8},
    }
    y = {"type": "quantitative", "scale": {"zero": True}, "axis": {"title": None, "tickCount": 4, "format": "~g"}}
    return spec_of(
        alt,
        values,
        facet={
            "field": "measure",
            "type": "nominal",
            "sort": ["1 − cosine", "relative error"],
            "header": {"title": None, "labelFontWeight": "bold"},
        },
        spacing=18,
        resolve={"scale": {"y": "independent"}},
        spec={
            "width": 170,
            "height": 120,
            "layer": [
                {
                    "mark": {"type": "rule", "strokeWidth": 1.4, "opacity": 0.75},
                    "encoding": {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}},
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 40, "opacity": 1},
                    "encoding": {
                        "x": x,
                        "y": {"field": "value", **y},
                        "tooltip": [
                            {"field": "layer", "type": "quantitative"},
                            {"field": "measure", "type": "nominal"},
                            {"field": "value", "type": "quantitative", "format": ".4~g"},
                        ],
                    },
                },
            ],
        },
    )
