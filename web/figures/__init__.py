"""Figures: pure functions from rows to a Vega-Lite spec and the table with the same numbers."""

from __future__ import annotations

from web.figures.allocation import ChosenConfig, allocation_figure
from web.figures.base import Column, Figure, Table
from web.figures.errors import Cell, errors_figure
from web.figures.fit import FittedCell, fit_figure
from web.figures.outcome import Outcome, outcome_figure
from web.figures.sensitivity import AnchorResult, sensitivity_figure

__all__ = [
    "AnchorResult",
    "Cell",
    "ChosenConfig",
    "Column",
    "Figure",
    "FittedCell",
    "Outcome",
    "Table",
    "allocation_figure",
    "errors_figure",
    "fit_figure",
    "outcome_figure",
    "sensitivity_figure",
]
