"""Compressions as the API shows them."""

from __future__ import annotations

from results_db.params import CompressParams, OverridesYaml
from results_db.tables import Compression
from server.kit.answers import page_model, row_model

CompressionRow = row_model(Compression)
CompressionPage = page_model(CompressionRow)


class CompressionRequest(CompressParams):
    """An allocation by its id, or the YAML of overrides, which is stored as an allocation first."""

    overrides_yaml: OverridesYaml | None = None
