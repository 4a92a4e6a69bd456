"""Validations as the API shows them."""

from __future__ import annotations

from results_db.tables import Validation
from server.kit.answers import page_model, row_model

ValidationRow = row_model(Validation)
ValidationPage = page_model(ValidationRow)
