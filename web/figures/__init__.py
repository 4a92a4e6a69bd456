"""Figures: pure functions from rows to a Vega-Lite spec and the table with the same numbers."""

from __future__ import annotations

from web.figures.allocation import ChosenConfig, allocation_figure
from web.figures.base import Column, Figure, Table
from web.figures.errors import Cell, LayerGroups, errors_figure
from web.figures.estimates import Estimated, estimates_figure
from web.figures.fidelity import LayerFidelity, fidelity_figure
from web.figures.fit import FittedCell, fit_figure
from web.figures.forms import FittedForm, forms_figure
from web.figures.frontier import FrontierPoint, frontier_figure
from web.figures.outcome import Outcome, outcome_figure
from web.figures.prediction import Agreement, Validated, prediction_figure
from web.figures.sensitivity import AnchorResult, sensitivity_figure

__all__ = [
    "Agreement",
    "AnchorResult",
    "Cell",
    "ChosenConfig",
    "Column",
    "Estimated",
    "Figure",
    "FittedCell",
    "FittedForm",
    "FrontierPoint",
    "LayerFidelity",
    "LayerGroups",
    "Outcome",
    "Table",
    "Validated",
    "allocation_figure",
    "errors_figure",
    "estimates_figure",
    "fidelity_figure",
    "fit_figure",
    "forms_figure",
    "frontier_figure",
    "outcome_figure",
    "prediction_figure",
    "sensitivity_figure",
]
