"""The states of jobs and attempts, and which changes are allowed."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    WAITING = "waiting"  #: depends on jobs that have not finished
    QUEUED = "queued"  #: ready; a worker or the advance loop may take it
    RUNNING = "running"
    PAUSED = "paused"  #: a person paused it; resume queues it again
    SUCCEEDED = "succeeded"
    FAILED = "failed"  #: its own error; a retry is a person's decision
    CANCELLED = "cancelled"
    DEAD = "dead"  #: lost or crashed too often
    SKIPPED = "skipped"  #: a gate said NO-GO, or a job that it needs did not succeed


class AttemptState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RELEASED = "released"  #: given back in order (shutdown, pause); does not count toward ``dead``
    LOST = "lost"  #: its lease ran out or its process died
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.DEAD, JobState.SKIPPED})

ALLOWED: dict[JobState, frozenset[JobState]] = {
    JobState.WAITING: frozenset(
        {JobState.QUEUED, JobState.CANCELLED, JobState.SKIPPED, JobState.PAUSED, JobState.FAILED}
    ),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.PAUSED, JobState.SKIPPED}),
    JobState.RUNNING: frozenset(
        {
            JobState.QUEUED,
            JobState.PAUSED,
            JobState.SUCCEEDED,
            JobState.FAILED,
            JobState.CANCELLED,
            JobState.DEAD,
        }
    ),
    JobState.PAUSED: frozenset({JobState.WAITING, JobState.QUEUED, JobState.CANCELLED, JobState.SKIPPED}),
    JobState.SUCCEEDED: frozenset(),
    # a person may retry what did not succeed; skipped jobs wait again when the study goes on
    JobState.FAILED: frozenset({JobState.QUEUED, JobState.WAITING}),
    JobState.CANCELLED: frozenset({JobState.QUEUED, JobState.WAITING}),
    JobState.DEAD: frozenset({JobState.QUEUED, JobState.WAITING}),
    JobState.SKIPPED: frozenset({JobState.QUEUED, JobState.WAITING}),
}


class JobKind(StrEnum):
    FETCH = "fetch"
    CALIBRATE = "calibrate"
    SENSITIVITY = "sensitivity"
    SWEEP = "sweep"
    COMPRESS = "compress"
    EVALUATE = "evaluate"
    VALIDATE = "validate"
    PROBE = "probe"
    FIT = "fit"
    ALLOCATE = "allocate"
    GATE = "gate"


#: run by the GPU worker through RQ; the others run in the server's advance loop
WORKER_KINDS = frozenset(
    {
        JobKind.FETCH,
        JobKind.CALIBRATE,
        JobKind.SENSITIVITY,
        JobKind.SWEEP,
        JobKind.COMPRESS,
        JobKind.EVALUATE,
        JobKind.VALIDATE,
        JobKind.PROBE,
    }
)


class StudyState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    STOPPED = "stopped"  #: a gate said NO-GO
    FAILED = "failed"
    CANCELLED = "cancelled"
