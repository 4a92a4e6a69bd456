"""What a handler is given besides its parameters."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from results_db import Database
from results_db.queue.lease import Claim
from results_db.settings import Settings
from worker.artefacts import ArtefactStore
from worker.database import is_away
from worker.device import Device
from worker.progress import ProgressMeter

log = logging.getLogger(__name__)

T = TypeVar("T")

#: waits between tries to write while the database is away: about half a minute in all
_PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


class Recorder:
    """Writes what a job measured: each time one short transaction, guarded by the claim's token.

    While the database is away it tries again; unique keys make a commit whose answer was lost harmless.
    """

    def __init__(self, database: Database, claim: Claim) -> None:
        self.database = database
        self.claim = claim

    def write(self, record: Callable[[Session, Claim], T]) -> T:
        """Run ``record(session, claim)`` in a transaction.

        Raises:
            LeaseLost: another attempt owns the job; nothing was written.
            DBAPIError: the database stayed away, or refused what was written.
        """
        for pause_s in _PAUSES_S:
            try:
                with self.database.write() as session:
                    return record(session, self.claim)
            except DBAPIError as error:
                if not _may_pass(error):
                    raise
                log.warning("a write failed and is tried again in %s s: %s", pause_s, error)
                time.sleep(pause_s)
        with self.database.write() as session:
            return record(session, self.claim)

    def read(self, question: Callable[[Session], T]) -> T:
        """Run ``question(session)`` in a transaction that writes nothing."""
        with self.database.read() as session:
            return question(session)


def _may_pass(error: DBAPIError) -> bool:
    """Whether the same write may succeed a moment later.

    IntegrityError: another worker recorded the same thing between our look and our insert.
    """
    return is_away(error) or isinstance(error, IntegrityError)


@dataclass(frozen=True, slots=True)
class JobContext:
    """The claim, where to record, where to compute, whom to tell."""

    claim: Claim
    settings: Settings
    device: Device
    recorder: Recorder
    progress: ProgressMeter
    #: tokens that go through a layer at once; smaller after an attempt that ran out of memory
    batch_tokens: int
    #: where finished calibrations and packed models lie, and folders for unfinished ones
    store: ArtefactStore
    #: whether an attempt before this one ran out of memory: what can be done in smaller pieces is
    starved: bool = False
