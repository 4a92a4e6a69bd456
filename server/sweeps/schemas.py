"""Sweeps as the API shows them."""

from __future__ import annotations

from results_db.tables import Sweep
from server.kit.answers import page_model, row_model

SweepRow = row_model(Sweep)
#: state of its job, and how many jobs of its layers are in which state
SweepDetail = row_model(Sweep, "SweepDetail", n_recorded=int, state=str, parts=dict[str, int])
SweepPage = page_model(SweepRow)
