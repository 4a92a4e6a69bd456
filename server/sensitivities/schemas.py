"""Sensitivities as the API shows them."""

from __future__ import annotations

from results_db.tables import Sensitivity
from server.kit.answers import page_model, row_model

SensitivityRow = row_model(Sensitivity)
SensitivityPage = page_model(SensitivityRow)
