"""Probes as the API shows them."""

from __future__ import annotations

from results_db.tables import Throughput
from server.kit.answers import page_model, row_model

ThroughputRow = row_model(Throughput)
ThroughputPage = page_model(ThroughputRow)
