"""Allocations as the API shows them."""

from __future__ import annotations

from results_db.tables import Allocation
from server.kit.answers import page_model, row_model

AllocationRow = row_model(Allocation)
AllocationPage = page_model(AllocationRow)
