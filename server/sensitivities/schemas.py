"""Sensitivities as the API shows them."""

from __future__ import annotations

from results_db.tables import LayerFidelityRow, SensitivityAnchor, SensitivityEstimate
from server.kit.answers import page_model, row_model

EstimatePage = page_model(row_model(SensitivityEstimate))
AnchorPage = page_model(row_model(SensitivityAnchor))
FidelityPage = page_model(row_model(LayerFidelityRow, "LayerFidelity"))
