"""Sensitivities as the API shows them."""

from __future__ import annotations

from results_db.tables import SensitivityAnchor
from server.kit.answers import page_model, row_model

SensitivityRow = row_model(SensitivityAnchor)
SensitivityPage = page_model(SensitivityRow)
