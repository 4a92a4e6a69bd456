"""Sweeps as the API shows them."""

from __future__ import annotations

from results_db.tables import Sweep
from server.kit.answers import page_model, row_model

SweepRow = row_model(Sweep)
SweepPage = page_model(SweepRow)
