"""The heartbeat: a thread that keeps the lease, stores progress, and hears what people want."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextvars import copy_context
from types import TracebackType

from results_db import Database
from results_db.errors import LeaseLost
from results_db.queue.lease import Beat, Claim, heartbeat, release_attempt
from results_db.settings import Settings
from results_db.states import JobState
from worker.crash import LastWords
from worker.database import open_database
from worker.peaks import peaks
from worker.progress import ProgressMeter
from worker.stop import StopRequest

log = logging.getLogger(__name__)

#: seconds that a job has to come to a stop after its cancel was heard: with the beat that hears it, less than the ten
#: that are promised
CANCEL_GRACE_S = 2.5
#: exit code of a horse whose lease another attempt holds
FENCED = 75


class Heartbeat:
    """Beats while the block runs, on an engine of its own.

    A lease that is lost ends the process at once: what it computes is somebody else's by now. A job that does not
    come to a stop within ``CANCEL_GRACE_S`` after a cancel was heard is ended as well; its device memory goes with the
    process.
    """

    def __init__(
        self, claim: Claim, settings: Settings, progress: ProgressMeter, stop: StopRequest, words: LastWords
    ) -> None:
        self._claim = claim
        self._settings = settings
        self._progress = progress
        self._stop = stop
        self._words = words
        self._ended = threading.Event()
        self._thread = threading.Thread(
            # its log lines carry the attempt's ids
            target=copy_context().run,
            args=(self._run,),
            name="heartbeat",
            daemon=True,
        )

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        database = open_database(self._settings)
        cancelled_at: float | None = None
        wait_s = self._settings.heartbeat_s
        try:
            while not self._ended.wait(wait_s):
                beat = self._beat(database)
                if beat is not None and beat.cancel_requested:
                    cancelled_at = cancelled_at or time.monotonic()
                    self._stop.ask("cancel")
                elif beat is not None and beat.pause_requested:
                    self._stop.ask("pause")
                if cancelled_at is not None:
                    if time.monotonic() - cancelled_at >= CANCEL_GRACE_S:
                        self._cancel_now(database)
                    wait_s = min(wait_s, CANCEL_GRACE_S)
        finally:
            database.dispose()

    def _beat(self, database: Database) -> Beat | None:
        """One beat; None where the database did not answer: the lease outlives several missed beats."""
        try:
            self._words.note()
            with database.write() as session:
                return heartbeat(
                    session,
                    self._claim,
                    lease_s=self._settings.lease_s,
                    progress=self._progress.snapshot(),
                    peaks=peaks(),
                )
        except LeaseLost as error:
            self._fence(error)
        except Exception:
            log.warning("attempt %s: a heartbeat failed", self._claim.attempt_id, exc_info=True)
        return None

    def _fence(self, error: LeaseLost) -> None:
        if self._ended.is_set():
            return  # the job's own thread has just closed the attempt
        log.error("%s; this process stops at once", error)
        os._exit(FENCED)

    def _cancel_now(self, database: Database) -> None:
        if self._ended.is_set():
            return
        log.warning("attempt %s does not come to a stop by itself: cancelled from outside", self._claim.attempt_id)
        try:
            with database.write() as session:
                release_attempt(session, self._claim, to=JobState.CANCELLED)
        except LeaseLost as error:
            self._fence(error)
        except Exception:
            # the next beat tries again; if the database stays away, so does the lease
            log.warning("attempt %s: its cancel could not be stored", self._claim.attempt_id, exc_info=True)
            return
        self._words.forget()
        os._exit(0)
