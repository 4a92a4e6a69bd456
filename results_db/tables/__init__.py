"""Every table, so that one import makes the metadata complete."""

from __future__ import annotations

from results_db.tables.access import IdempotencyKey, PageSession, Token
from results_db.tables.allocations import Allocation, AllocationItem
from results_db.tables.compressions import Compression
from results_db.tables.evaluations import Evaluation, EvaluationItem
from results_db.tables.fits import Fit, FitParameter
from results_db.tables.jobs import Attempt, Job, JobEvent, QueueControl, Worker
from results_db.tables.measurements import Measurement, RetiredMeasurement, Sweep
from results_db.tables.models import Artefact, Calibration, Model
from results_db.tables.sensitivities import LayerFidelityRow, SensitivityAnchor, SensitivityEstimate
from results_db.tables.studies import Gate, Study
from results_db.tables.throughputs import Throughput
from results_db.tables.validations import Validation, ValidationItem, ValidationWindow

__all__ = [
    "Allocation",
    "AllocationItem",
    "Artefact",
    "Attempt",
    "Calibration",
    "Compression",
    "Evaluation",
    "EvaluationItem",
    "Fit",
    "FitParameter",
    "Gate",
    "IdempotencyKey",
    "Job",
    "JobEvent",
    "LayerFidelityRow",
    "Measurement",
    "Model",
    "PageSession",
    "QueueControl",
    "RetiredMeasurement",
    "SensitivityAnchor",
    "SensitivityEstimate",
    "Study",
    "Sweep",
    "Throughput",
    "Token",
    "Validation",
    "ValidationItem",
    "ValidationWindow",
    "Worker",
]
