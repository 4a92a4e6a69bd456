"""Forms: the error models that were fitted, by the error that each has on what it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from web.figures.base import Column, Figure, Table, every_label, finite, spec_of
from web.formatting import number

_HELD_OUT = {"config": "a config left out", "layer": "a layer left out"}


@dataclass(frozen=True, slots=True)
class FittedForm:
    """One form of a group of fits; None where it could not be fitted or that was not asked."""

    form: str
    chosen: bool
    #: why it is chosen or not, in words
    reason: str = ""
    #: root mean square of log error, leaving a config out and leaving a layer out
    cv_error: float | None = None
    cv_layer_error: float | None = None
    #: within matrices on log error, of configs left out
    r2_cv: float | None = None
    #: of the measurements that the fit has seen
    r2_linear: float | None = None
    r2_log: float | None = None
    #: as ``r2_cv``, of attention, mlp, early and late layers
    r2_groups: tuple[float | None, ...] = (None, None, None, None)
    n_observations: int | None = None

    @property
    def name(self) -> str:
        return self.form.replace("_", "-")


def forms_figure(forms: Sequence[FittedForm]) -> Figure:
    """Dots of cross-validated error, a row a form; the table has R² by group and the reasons."""
    title = "Error models compared"
    table = Table(
        (
            Column("form"),
            Column("chosen"),
            Column("log error, config left out", "number"),
            Column("log error, layer left out", "number"),
            *(Column(f"R² left out{group}", "number") for group in ("", ", attention", ", MLP", ", early", ", late")),
            Column("R² linear", "number"),
            Column("R² log", "number"),
            Column("cells", "count"),
            Column("why"),
        ),
        tuple(
            (
                f.name,
                "yes" if f.chosen else "no",
                *(f.cv_error, f.cv_layer_error, f.r2_cv, *f.r2_groups, f.r2_linear, f.r2_log),
                f.n_observations,
                f.reason,
            )
            for f in forms
        ),
    )
    drawn = [f for f in forms if finite(f.cv_error) is not None or finite(f.cv_layer_error) is not None]
    if not drawn:
        return Figure("forms", title, "Nothing is fitted yet: the sweep comes first.", title, table)
    said = "; ".join(f"{f.name} {number(f.cv_error, 3)}" for f in drawn)
    caption = "Root mean square of the log error where a config, or a layer, is left out; less is better."
    chosen = next((f for f in forms if f.chosen), None)
    if chosen is not None:
        caption += f" Chosen: {chosen.name}" + (f" ({chosen.reason.rstrip('.')})." if chosen.reason else ".")
    alt = f"Dot plot of cross-validated error of {len(drawn)} forms; with a config left out: {said}. {caption}"
    return Figure("forms", title, caption, alt, table, _spec(drawn, alt))


def _spec(forms: Sequence[FittedForm], alt: str) -> dict[str, object]:
    values = [
        {
            "form": f.name + (" (chosen)" if f.chosen else ""),
            "left out": _HELD_OUT[kind],
            "error": error,
        }
        for f in forms
        for kind, error in (("config", f.cv_error), ("layer", f.cv_layer_error))
        if finite(error) is not None
    ]
    return spec_of(
        alt,
        values,
        width=300,
        height={"step": 30},
        mark={"type": "point", "filled": True, "size": 80, "opacity": 0.95},
        encoding={
            "y": {"field": "form", "type": "nominal", "sort": None, "axis": every_label(None, labelLimit=170)},
            "x": {
                "field": "error",
                "type": "quantitative",
                "scale": {"zero": True},
                "axis": {"title": "error of log error", "tickCount": 5, "grid": True},
            },
            "color": {
                "field": "left out",
                "type": "nominal",
                "scale": {"domain": list(_HELD_OUT.values())},
                "legend": {"orient": "top", "title": None},
            },
            "shape": {
                "field": "left out",
                "type": "nominal",
                "scale": {"domain": list(_HELD_OUT.values()), "range": ["circle", "diamond"]},
            },
            "tooltip": [
                {"field": "form", "type": "nominal"},
                {"field": "left out", "type": "nominal"},
                {"field": "error", "type": "quantitative", "format": ".4~g"},
            ],
        },
    )
