"""Rows in batches: never more than one in memory, and no transaction while a slow reader reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select

from results_db import Database
from server.exports.catalogue import Export

#: rows read at once; also the rows of a Parquet row group
BATCH = 2000

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Rows:
    """The rows of one export that were there when it began: those that come later are not in the file. A row that is
    changed meanwhile comes as it is when it is read."""

    database: Database
    export: Export
    conditions: Sequence[ColumnElement[bool]]
    #: the largest key when the export began; None = there was no row
    up_to: str | int | None

    @classmethod
    def now(cls, database: Database, export: Export, conditions: Sequence[ColumnElement[bool]]) -> Rows:
        """Look up where the export will end."""
        with database.read() as session:
            up_to = session.scalar(select(func.max(export.key)).where(*conditions))
        return cls(database, export, conditions, up_to)

    def __iter__(self) -> Iterator[list[Row]]:
        """Batches of rows in the order of their keys, each a value a column."""
        if self.up_to is None:
            return
        key = self.export.key
        query = select(*(self.export.column(name) for name in self.export.columns)).where(*self.conditions)
        most = min(BATCH, self.export.batch or BATCH)
        query = query.where(key <= self.up_to).order_by(key).limit(most)
        place = list(self.export.columns).index(key.key)
        last: Any = None
        while True:
            with self.database.read() as session:
                page = query if last is None else query.where(key > last)
                rows = [tuple(row) for row in session.execute(page)]
            if rows:
                yield rows
                last = rows[-1][place]
            if len(rows) < most:
                return
