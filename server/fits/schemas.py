"""Fits as the API shows them."""

from __future__ import annotations

from results_db.tables import Fit, FitParameter
from server.kit.answers import page_model, row_model

FitDetail = row_model(Fit, "FitDetail", parameters=list[row_model(FitParameter)])  # type: ignore[misc]
#: lists leave the residuals out: a row a cell
FitListed = row_model(Fit, "FitListed", without=("residuals",))
FitPage = page_model(FitListed)
