"""Everything that compress_core raises on purpose.

One root; every message names the thing and the cure. ``retryable`` tells a job runner whether the
same call could succeed later (out of memory may, NaN weights never will).
"""

from __future__ import annotations


class CompressCoreError(Exception):
    """Root of every error that compress_core raises on purpose."""

    retryable = False
    #: stable, machine-readable name; the service shows it as the job's cause
    code = "compress-core-error"


class ConfigError(CompressCoreError, ValueError):
    """A compression config, grid or option is not valid."""

    code = "invalid-config"


class RankTooLarge(ConfigError):
    """An explicit rank exceeds min(out_features, in_features)."""

    code = "rank-too-large"


class CheckpointError(CompressCoreError):
    """A checkpoint cannot be read: missing, truncated, not safetensors, or not what it claims to be."""

    code = "invalid-checkpoint"


class UnsupportedArchitecture(CheckpointError):
    """The decoder layers or one of the seven projections cannot be found."""

    code = "unsupported-architecture"


class NonFiniteValues(CompressCoreError, ValueError):
    """NaN or infinity in weights, Hessian or results; a retry cannot help."""

    code = "non-finite-values"


class CalibrationError(CompressCoreError):
    """Calibration data or a stored Hessian is missing, too short, or does not fit the model."""

    code = "invalid-calibration"


class PackedFormatError(CompressCoreError):
    """A packed file does not follow the format or disagrees with its own header."""

    code = "invalid-packed-file"


class FitError(CompressCoreError):
    """Too few or degenerate observations for the fit that was asked for."""

    code = "fit-failed"


class InfeasibleBudget(CompressCoreError):
    """No allocation fits the budget; the message names the smallest feasible one."""

    code = "infeasible-budget"

    def __init__(self, message: str, *, smallest_bytes: int) -> None:
        super().__init__(message)
        self.smallest_bytes = smallest_bytes


class DeviceNotFound(CompressCoreError):
    """A device was asked for and is not there. Never answered by falling back to the CPU."""

    code = "device-not-found"


class OutOfMemory(CompressCoreError):
    """The device or the host ran out of memory; smaller batches may help."""

    code = "out-of-memory"
    retryable = True


class WorkInProgress(CompressCoreError):
    """Another process is at work in the same folder; once it has ended, the same call can succeed."""

    code = "work-in-progress"
    retryable = True


class Interrupted(CompressCoreError):
    """A progress callback asked the computation to stop (cancelled, paused, or fenced)."""

    code = "interrupted"
