"""Error heatmap: every matrix by every config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from web.figures.base import (
    Column,
    Figure,
    Table,
    every_label,
    finite,
    in_order,
    layers_of,
    log_colour,
    matrix_label,
    spec_of,
    step,
)
from web.formatting import number

#: of groups of layers, which are eight at most
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Cell:
    """One (matrix, config) that the sweep was asked for; ``error`` is None until it is measured."""

    layer_idx: int
    projection: str
    expert_idx: int
    config: str
    #: tr(D H Dᵀ) / tr(W H Wᵀ)
    error: float | None
    bits_per_weight: float | None = None
    nbytes: int | None = None


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """Layers that are alike in their errors."""

    #: "level_and_shape" or "shape"
    basis: str
    groups: tuple[tuple[int, ...], ...]
    #: why so many
    reason: str

    def sentence(self) -> str:
        """What was found, in words."""
        basis = "by level and shape of their errors" if self.basis == "level_and_shape" else "by shape alone"
        why = f" ({self.reason.rstrip('.')})" if self.reason else ""
        if len(self.groups) < 2:
            return f"Layers fall into no groups {basis}{why}."
        named = "; ".join(f"{_LETTERS[i]}: {_ranges(group)}" for i, group in enumerate(self.groups))
        return f"Layers fall into {len(self.groups)} groups {basis}: {named}{why}."


def errors_figure(cells: Sequence[Cell], groups: Sequence[LayerGroups] = ()) -> Figure:
    """Rows: layers, in one panel a projection; columns: configs; colour: log of calibration_weighted_error.

    Args:
        groups: of layers; the letters of the first of them stand beside the rows.
    """
    title = "Error of every matrix under every config"
    table = _table(cells)
    measured = [cell.error for cell in cells if finite(cell.error) is not None and (cell.error or 0) > 0]
    if not measured:
        return Figure("errors", title, "Nothing is measured yet: the sweep fills this in.", title, table)
    low, high = min(e for e in measured if e), max(e for e in measured if e)
    alt = (
        f"Heatmap of calibration-weighted error: {len(in_order(c.projection for c in cells))} projections by layer "
        f"against {len(in_order(c.config for c in cells))} configs. {len(measured)} of {len(cells)} cells measured; "
        f"errors run from {number(low, 3)} to {number(high, 3)}."
    )
    missing = len(cells) - len(measured)
    caption = (
        f"Calibration-weighted error, tr(D H Dᵀ) / tr(W H Wᵀ), on a log scale: "
        f"from {number(low, 3)} to {number(high, 3)}, a factor of {number(high / low, 3)}."
    )
    if missing:
        caption += f" {missing} of {len(cells)} cells are hatched: not measured."
    told = " ".join(found.sentence() for found in groups)
    if told:
        caption, alt = f"{caption} {told}", f"{alt} {told}"
    letters = _letters(groups[0]) if groups else {}
    return Figure("errors", title, caption, alt, table, _spec(cells, alt, letters), "canvas")


def _letters(found: LayerGroups) -> dict[int, str]:
    """Layer → the letter of its group; empty where all layers are in one."""
    if len(found.groups) < 2:
        return {}
    return {layer: _LETTERS[i] for i, group in enumerate(found.groups) for layer in group}


def _ranges(layers: Sequence[int]) -> str:
    """``0–2, 5``: runs of layers."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def _spec(cells: Sequence[Cell], alt: str, letters: dict[int, str]) -> dict[str, object]:
    values = []
    for cell in cells:
        error = finite(cell.error)
        is_drawn = error is not None and error > 0
        values.append(
            {
                "projection": cell.projection,
                "layer": _row_label(cell, letters),
                "config": cell.config,
                "error": error if is_drawn else None,
                "bits": finite(cell.bits_per_weight),
                "nbytes": cell.nbytes,
                "status": "measured" if is_drawn else "not measured",
            }
        )
    configs = in_order(cell.config for cell in cells)
    layers = in_order(str(v["layer"]) for v in values)
    wide, high = step(len(configs), 460, 14, 40), step(len(layers), 110, 10, 16)
    x = {
        "field": "config",
        "type": "nominal",
        "sort": configs,
        "axis": every_label(None, orient="bottom", labelAngle=-60, labelLimit=160),
    }
    y = {"field": "layer", "type": "nominal", "sort": layers, "axis": every_label(None)}
    measured = {
        "transform": [{"filter": "datum.status === 'measured'"}],
        "mark": {"type": "rect"},
        "encoding": {
            "x": x,
            "y": y,
            "color": {"field": "error", **log_colour("calibration-weighted error")},
            "tooltip": [
                {"field": "projection", "type": "nominal"},
                {"field": "layer", "type": "nominal"},
                {"field": "config", "type": "nominal"},
                {"field": "error", "type": "quantitative", "format": ".3e"},
                {"field": "bits", "type": "quantitative", "format": ".3f", "title": "bits/weight"},
                {"field": "nbytes", "type": "quantitative", "format": ",", "title": "bytes"},
            ],
        },
    }
    return spec_of(
        alt,
        values,
        facet={
            "row": {
                "field": "projection",
                "type": "nominal",
                "sort": in_order(cell.projection for cell in cells),
                "header": {"title": None, "labelAngle": 0, "labelAlign": "left", "labelFontWeight": "bold"},
            }
        },
        spacing={"row": 5},
        spec={"width": {"step": wide}, "height": {"step": high}, "layer": layers_of(measured, values, x, y)},
    )


def _row_label(cell: Cell, letters: dict[int, str]) -> str:
    label = matrix_label(cell.layer_idx, cell.expert_idx)
    return f"{letters[cell.layer_idx]} {label}" if cell.layer_idx in letters else label


def _table(cells: Sequence[Cell]) -> Table:
    configs = in_order(cell.config for cell in cells)
    by_matrix: dict[tuple[str, int, int], dict[str, float | None]] = {}
    for cell in cells:
        by_matrix.setdefault((cell.projection, cell.layer_idx, cell.expert_idx), {})[cell.config] = finite(cell.error)
    return Table(
        (Column("projection"), Column("layer"), *(Column(config, "number") for config in configs)),
        tuple(
            (projection, matrix_label(layer, expert), *(errors.get(config) for config in configs))
            for (projection, layer, expert), errors in by_matrix.items()
        ),
    )
