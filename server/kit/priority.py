"""``?priority=``: one way to say how urgent the jobs of a request are, whatever it submits."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query
from sqlalchemy.orm import Session

from results_db.queue.submit import PRIORITY
from server.kit.units import WriteSession

LOWEST, HIGHEST = -100, 100

Priority = Annotated[
    int,
    Query(
        ge=LOWEST,
        le=HIGHEST,
        description="Jobs of higher priority go first; equal ones by their place in the study, then by age.",
    ),
]


def submitting_session(session: WriteSession, priority: Priority = 0) -> Session:
    """A writing session that gives this priority to every job submitted in it."""
    session.info[PRIORITY] = priority
    return session


SubmitSession = Annotated[Session, Depends(submitting_session, scope="function")]
