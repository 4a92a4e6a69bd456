"""Validations as the API shows them."""

from __future__ import annotations

from results_db.tables import Validation, ValidationItem
from server.kit.answers import page_model, row_model

ValidationRow = row_model(Validation)
ValidationPage = page_model(ValidationRow)
ValidationDetail = row_model(Validation, "ValidationDetail", items=list[row_model(ValidationItem)])  # type: ignore[misc]
