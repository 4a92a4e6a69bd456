"""What each file says of itself: which table, which schema, who wrote it when, and which rows it was asked for."""

from __future__ import annotations

import json
from typing import Any

from results_db.cells import plain
from results_db.clock import utc_now
from results_db.migrate import head_revision
from server.exports.batches import Rows

#: of the files' form: a column may come at the end, anything else is a new version
FORMAT_VERSION = 1

#: the response's header; a CSV has no other place for it
HEADER = "X-Bitbudget-Export"


def provenance(rows: Rows, filters: dict[str, str], version: str) -> dict[str, Any]:
    """The schema and the provenance of an export, in JSON's types."""
    return {
        "export": rows.export.name,
        "format_version": FORMAT_VERSION,
        "schema_revision": head_revision(),
        "bitbudget_version": version,
        "exported_at": plain(utc_now()),
        "filters": filters,
        "up_to_id": rows.up_to,
        "columns": {name: str(kind) for name, kind in rows.export.columns.items()},
    }


def as_header(value: dict[str, Any]) -> str:
    """One line of ASCII."""
    return json.dumps(value, separators=(",", ":"))
