"""What the worker raises on purpose. ``code`` is the stable name that the job's error carries."""

from __future__ import annotations


class WorkerError(Exception):
    """Root of every error that the worker raises on purpose."""

    code = "worker-error"
    retryable = False


class DeviceUnavailable(WorkerError):
    """The device that was asked for is absent or taken; never answered by falling back to the CPU."""

    code = "device-not-found"


class MissingInput(WorkerError):
    """A job needs something that no other job has made yet; the message says what to submit first."""

    code = "missing-input"


class StoreNotUsable(WorkerError):
    """BITBUDGET_ARTEFACTS_URL, or an artefact's URL, asks for something that this worker does not have."""

    code = "store-not-usable"


class StoreUnreachable(WorkerError):
    """The artefact store does not answer; the same call may succeed later."""

    code = "store-unreachable"
    retryable = True


class DiskFull(WorkerError):
    """A disk that the job writes to has no space left; once there is some, the job may be retried."""

    code = "disk-full"


class ModelChanged(WorkerError):
    """The files of a model are no longer those that were registered."""

    code = "model-changed"


class NotReady(WorkerError):
    """The database or Redis cannot be used yet."""

    code = "not-ready"


class DuplicateModel(WorkerError):
    """Weights that were fetched are those of a model that is registered already."""

    code = "duplicate-model"
