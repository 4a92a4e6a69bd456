"""What whoever builds on a stale allocation must be told."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.orm import Session

from results_db.stale import stale_inputs


def stale_warning(session: Session, allocation_ids: Iterable[str | None]) -> str | None:
    """A sentence for the first stale one, and how many there are besides; None where all of them stand."""
    stale = stale_inputs(session, allocation_ids)
    if not stale:
        return None
    first = stale[0]
    others = f" (and {len(stale) - 1} more)" if len(stale) > 1 else ""
    return (
        f"allocation {first['name']} ({first['allocation_id']}) is stale{others}: {first['stale_reason']}. What is "
        "made from it is what it says, but it may not be what would be chosen now: allocate again"
    )
