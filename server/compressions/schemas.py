"""Compressions as the API shows them."""

from __future__ import annotations

from results_db.tables import Compression
from server.kit.answers import page_model, row_model

CompressionRow = row_model(Compression)
CompressionPage = page_model(CompressionRow)
