"""What a page must say of results that stand on measurements which count no more."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db.tables import Allocation, Fit, Gate

_NOUNS = (("fit", Fit), ("allocation", Allocation), ("gate", Gate))


@dataclass(frozen=True, slots=True)
class Stale:
    """The stale rows that some jobs made."""

    #: of each job: why its first stale row is stale
    by_job: dict[str, str]
    #: ``2 fits, 1 allocation and 5 gates``
    counts: str
    #: of the oldest mark
    reason: str

    def __bool__(self) -> bool:
        return bool(self.by_job)


def stale_of(session: Session, job_ids: Collection[str]) -> Stale:
    """Fits, allocations and gates of these jobs that are stale; false where all of them stand."""
    by_job: dict[str, str] = {}
    counts, marks = [], []
    for noun, table in _NOUNS:
        rows = session.execute(
            select(table.job_id, table.stale_at, table.stale_reason)
            .where(table.job_id.in_(job_ids), table.stale_at.is_not(None))
            .order_by(table.stale_at, table.id)
        ).all()
        for row in rows:
            by_job.setdefault(row.job_id, row.stale_reason)
            marks.append((row.stale_at, row.stale_reason))
        if rows:
            counts.append(f"{len(rows)} {noun}{'s' if len(rows) > 1 else ''}")
    listed = " and ".join([", ".join(counts[:-1]), counts[-1]]) if len(counts) > 1 else "".join(counts)
    return Stale(by_job, listed, min(marks, key=lambda mark: mark[0])[1] if marks else "")
