"""run_attempt: what RQ calls in the work horse. The message is an attempt's id; everything else is in the database."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core.errors import Interrupted
from results_db import Database
from results_db.errors import LeaseLost
from results_db.logs import bind
from results_db.params import PARAMS
from results_db.queue.lease import Claim, claim_attempt, fail_attempt, finish_attempt, heartbeat, release_attempt
from results_db.settings import Settings
from results_db.states import JobKind, JobState
from results_db.tables import Attempt
from worker.artefacts import ArtefactStore
from worker.causes import describe
from worker.context import JobContext, Recorder
from worker.crash import LastWords
from worker.current import CurrentWorker, current_worker
from worker.database import open_database
from worker.disk import naming_full_disks
from worker.heartbeat import Heartbeat
from worker.peaks import peaks
from worker.progress import ProgressMeter
from worker.registry import handler_of
from worker.remote import is_remote
from worker.stop import die_with_parent
from worker.threads import set_torch_threads

log = logging.getLogger(__name__)

#: tokens that go through a layer at once, and after an attempt that ran out of memory
_BATCH_TOKENS, _SMALL_BATCH_TOKENS = 4096, 512

#: where a job goes when it is stopped
_STOPPED: dict[str, JobState] = {
    "cancel": JobState.CANCELLED,
    "pause": JobState.PAUSED,
    "shutdown": JobState.QUEUED,
}


def run_attempt(attempt_id: str) -> None:
    """Claim an attempt and run its job to a recorded end; quietly nothing if someone else has it."""
    worker = current_worker()
    die_with_parent(worker.pid)
    set_torch_threads()
    database = open_database(worker.settings)
    try:
        with database.write() as session:
            claim = claim_attempt(session, attempt_id, worker_id=worker.id, lease_s=worker.settings.lease_s)
        if claim is None:
            log.info("attempt %s is not to be had: it was claimed, cancelled or forgotten", attempt_id)
            return
        run_claimed(database, claim, worker)
    finally:
        database.dispose()


def run_claimed(database: Database, claim: Claim, worker: CurrentWorker) -> None:
    """Run the job of a claim and record how it ended; an error of the job's own never leaves this function."""
    ids = {"trace_id": claim.trace_id, "study_id": claim.study_id}
    with bind(**ids, job_id=claim.job_id, attempt_id=claim.attempt_id):
        _run_bound(database, claim, worker)


def _run_bound(database: Database, claim: Claim, worker: CurrentWorker) -> None:
    recorder = Recorder(database, claim)
    progress = ProgressMeter(worker.stop)
    starved = False
    log.info("attempt %s: %s job %s begins", claim.attempt_id, claim.kind, claim.job_id)
    try:
        try:
            starved = recorder.read(lambda session: _ran_out_of_memory(session, claim.job_id))
            with (
                naming_full_disks(_disks(worker.settings)),
                LastWords(worker.settings.var_dir, claim.attempt_id) as words,
                Heartbeat(claim, worker.settings, progress, worker.stop, words),
            ):
                result = _compute(recorder, worker, progress, starved=starved)
        except Interrupted:
            _release(recorder, worker, progress)
        except LeaseLost:
            raise
        except Exception as error:
            log.warning("attempt %s failed", claim.attempt_id, exc_info=True)
            cause = describe(error, starved=starved)
            backoff = worker.settings.backoff
            _end(
                recorder,
                worker.settings,
                progress,
                lambda s, claim: fail_attempt(s, claim, cause, **peaks(), backoff=backoff),
            )
        else:
            _end(recorder, worker.settings, progress, lambda s, claim: finish_attempt(s, claim, result, **peaks()))
            log.info("attempt %s: %s job %s succeeded", claim.attempt_id, claim.kind, claim.job_id)
    except LeaseLost as error:
        log.warning("%s", error)


def _compute(recorder: Recorder, worker: CurrentWorker, progress: ProgressMeter, *, starved: bool) -> dict[str, Any]:
    claim, settings = recorder.claim, worker.settings
    kind = JobKind(claim.kind)
    params = PARAMS[kind].model_validate(claim.params)
    context = JobContext(
        claim=claim,
        settings=settings,
        device=worker.device,
        recorder=recorder,
        progress=progress,
        batch_tokens=_SMALL_BATCH_TOKENS if starved else _BATCH_TOKENS,
        store=ArtefactStore(settings.artefacts_url, settings.var_dir, check=progress.check),
        starved=starved,
    )
    try:
        result = handler_of(kind)(params, context)
        # a job that is done has nothing left to go on with
        context.store.workspaces.close_all()
    finally:
        context.store.workspaces.leave_all()
    return result


def _disks(settings: Settings) -> list[Path]:
    """Folders that a job writes to."""
    store = [] if is_remote(settings.artefacts_url) else [Path(settings.artefacts_url)]
    return [settings.var_dir, *(folder for folder in store if not folder.is_relative_to(settings.var_dir))]


def _end(
    recorder: Recorder, settings: Settings, progress: ProgressMeter, end: Callable[[Session, Claim], None]
) -> None:
    """Close the attempt, with the last progress: short jobs end before their first heartbeat."""

    def close(session: Session, claim: Claim) -> None:
        heartbeat(session, claim, lease_s=settings.lease_s, progress=progress.snapshot())
        end(session, claim)

    recorder.write(close)


def _release(recorder: Recorder, worker: CurrentWorker, progress: ProgressMeter) -> None:
    """Give the attempt back."""
    to = _STOPPED[worker.stop.reason or "shutdown"]
    _end(recorder, worker.settings, progress, lambda session, claim: release_attempt(session, claim, to=to))
    log.info("attempt %s is released", recorder.claim.attempt_id)


def _ran_out_of_memory(session: Session, job_id: str) -> bool:
    errors = session.scalars(select(Attempt.error).where(Attempt.job_id == job_id)).all()
    return any(error is not None and error.get("code") == "out-of-memory" for error in errors)
