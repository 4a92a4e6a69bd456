"""Parquet, a row group a batch, written as it streams."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from results_db.cells import json_text, plain
from server.exports.batches import Rows
from server.kit.problem import Problem

if TYPE_CHECKING:
    import pyarrow

_METADATA = b"bitbudget"


def check_parquet() -> None:
    """
    Raises:
        Problem: parquet-not-installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401  # a large library, needed for this alone
    except ImportError as error:
        message = "the server has no pyarrow: install bitbudget[server] there, or ask for format jsonl or csv"
        raise Problem(501, "parquet-not-installed", message) from error


def write_parquet(rows: Rows, schema: dict[str, Any]) -> Iterator[bytes]:
    """The file in pieces; the schema and the provenance lie in its metadata under ``bitbudget``.

    Objects and lists are JSON texts. Times are UTC.
    """
    import pyarrow
    from pyarrow import parquet

    arrow = _arrow_schema(rows).with_metadata({_METADATA: json.dumps(schema).encode()})
    sink = _Sink()
    with parquet.ParquetWriter(pyarrow.PythonFile(sink, mode="w"), arrow, compression="zstd") as writer:
        for batch in rows:
            writer.write_batch(_batch(batch, arrow))
            yield sink.take()
    yield sink.take()


def _arrow_schema(rows: Rows) -> pyarrow.Schema:
    import pyarrow

    types = {
        "int": pyarrow.int64(),
        "float": pyarrow.float64(),
        "bool": pyarrow.bool_(),
        "str": pyarrow.string(),
        "json": pyarrow.string(),
        "datetime": pyarrow.timestamp("us", tz="UTC"),
    }
    return pyarrow.schema(
        [
            pyarrow.field(name, types[kind.type], kind.nullable, {"json": "1"} if kind.type == "json" else None)
            for name, kind in rows.export.columns.items()
        ]
    )


def _batch(batch: list[tuple[Any, ...]], schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    import pyarrow

    columns = list(zip(*batch, strict=True))
    arrays = [
        pyarrow.array([_cell(value) for value in values], field.type)
        for values, field in zip(columns, schema, strict=True)
    ]
    return pyarrow.record_batch(arrays, schema=schema)


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json_text(plain(value))
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


class _Sink(io.RawIOBase):
    """A file that is handed on piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(self._pieces[-1])

    def take(self) -> bytes:
        """What was written since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
