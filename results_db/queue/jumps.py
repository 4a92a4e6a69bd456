"""Wall clocks jump. Forward costs at worst an attempt: its lease ends early. Backward would keep a dead worker's lease,
or a wait, alive for as long as the jump: what ends later than it ever could is shortened."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, exists, or_, select, update
from sqlalchemy.orm import Session

from results_db.clock import db_now
from results_db.states import AttemptState
from results_db.tables import Attempt


def has_impossible_ends(session: Session, *, lease_s: float, longest_wait_s: float) -> bool:
    """Whether a lease or a wait ends later than any can."""
    found = or_(_lease_too_long(lease_s), _wait_too_long(longest_wait_s))
    return bool(session.scalar(select(exists().where(found))))


def shorten_impossible_ends(session: Session, *, lease_s: float, longest_wait_s: float) -> int:
    """Give such leases one lease from now, which a live worker renews, and end such waits after the longest wait; how
    many there were.

    All workers must use the same ``lease_s`` as the server, or at most twice as much.
    """
    changed = 0
    for condition, column, end_s in (
        (_lease_too_long(lease_s), "lease_expires_at", lease_s),
        (_wait_too_long(longest_wait_s), "available_at", longest_wait_s),
    ):
        done = session.execute(
            update(Attempt)
            .where(condition)
            .values({column: db_now(end_s)})
            .execution_options(synchronize_session=False)
        )
        changed += done.rowcount  # type: ignore[attr-defined]
    return changed


def _lease_too_long(lease_s: float) -> ColumnElement[bool]:
    return and_(Attempt.state == AttemptState.RUNNING.value, Attempt.lease_expires_at > db_now(2 * lease_s))


def _wait_too_long(longest_wait_s: float) -> ColumnElement[bool]:
    # a second's grace: the wait was drawn and its end computed at two moments
    return and_(Attempt.state == AttemptState.QUEUED.value, Attempt.available_at > db_now(longest_wait_s + 1.0))
