"""Calibrations as the API shows them."""

from __future__ import annotations

from results_db.tables import Calibration
from server.kit.answers import page_model, row_model

CalibrationRow = row_model(Calibration)
CalibrationPage = page_model(CalibrationRow)
