"""Fits as the API shows them."""

from __future__ import annotations

from results_db.tables import Fit
from server.kit.answers import page_model, row_model

FitRow = row_model(Fit)
FitPage = page_model(FitRow)
