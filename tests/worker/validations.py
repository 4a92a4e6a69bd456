"""Validations in tests: the allocations that are asked about, what was recorded, and the undisturbed truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from compress_core import CompressionConfig, MatrixKey
from compress_core.calibrate.calibration import Calibration as CalibrationFolder
from compress_core.checkpoint import open_checkpoint
from compress_core.text import TextSource, split_text
from compress_core.text.tokens import sampled_windows
from compress_core.verify.joint import JointLosses, joint_losses
from results_db.tables import Allocation, Artefact, Calibration, Validation, ValidationItem, ValidationWindow

RTN = {bits: CompressionConfig(b_q=bits, codebook="rtn") for bits in (2, 3, 4, 8)}
WINDOWS = {"length": 24, "count": 8, "seed": 3}


@dataclass(frozen=True)
class Stored:
    """An allocation in the database, and what it says."""

    id: str
    items: dict[MatrixKey, CompressionConfig]


@pytest.fixture
def store(service: Any, model_id: str, calibration_id: str, tiny_model: Path) -> Callable[..., Stored]:
    """Store an allocation as the server would, with columns of its own."""

    def make(config_of: Callable[[MatrixKey], CompressionConfig], path: Path = tiny_model, **columns: Any) -> Stored:
        model = model_id if path == tiny_model else service.add_model(path)
        calibration = columns.pop("calibration_id", calibration_id)
        allocation_id = service.allocate(model, calibration, path, config_of)
        with service.database.write() as session:
            row = session.get_one(Allocation, allocation_id)
            for name, value in columns.items():
                setattr(row, name, value)
        keys = [spec.key for spec in open_checkpoint(path).matrices()]
        return Stored(allocation_id, {key: config_of(key) for key in keys})

    return make


def recorded(service: Any, validation_id: str) -> tuple[Validation, list[ValidationItem], list[list[tuple[Any, ...]]]]:
    """The validation, its items in order, and (kl, nll, n_tokens) of each item's windows."""
    columns = (ValidationWindow.kl, ValidationWindow.nll, ValidationWindow.n_tokens)
    with service.database.read() as session:
        row = session.get_one(Validation, validation_id)
        query = select(ValidationItem).where(ValidationItem.validation_id == validation_id)
        items = list(session.scalars(query.order_by(ValidationItem.position)))
        windows = [
            [
                tuple(found)
                for found in session.execute(
                    select(*columns)
                    .where(ValidationWindow.validation_item_id == item.id)
                    .order_by(ValidationWindow.item_idx)
                )
            ]
            for item in items
        ]
    return row, items, windows


def undisturbed(service: Any, calibration_id: str, model: Path, text: Path, given: list[Stored]) -> JointLosses:
    """The same without a service: states in memory, and nobody kills it."""
    with service.database.read() as session:
        artefact = session.get_one(Artefact, session.get_one(Calibration, calibration_id).artefact_id)
    checkpoint = open_checkpoint(model)
    content = split_text(TextSource("file", text), "select")
    tokens = sampled_windows(model, content, samples=WINDOWS["count"], length=WINDOWS["length"], seed=WINDOWS["seed"])
    hessians = CalibrationFolder.open(artefact.uri, checkpoint)
    return joint_losses(checkpoint, hessians, tokens, [g.items for g in given])
