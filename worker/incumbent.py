"""The allocation that sensitivities are measured around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core import CompressionConfig, MatrixKey
from compress_core.sensitivity.reanchor import Incumbent
from results_db.errors import NotFound
from results_db.tables import Allocation, AllocationItem
from worker.errors import MissingInput


@dataclass(frozen=True)
class GivenIncumbent:
    """The allocation to measure around."""

    anchor: Incumbent
    calibration_id: str | None
    items: Mapping[MatrixKey, CompressionConfig]


def get_incumbent(session: Session, model_id: str, allocation_id: str) -> GivenIncumbent:
    """An allocation with its configs.

    Raises:
        NotFound: there is none of that id.
        MissingInput: it belongs to another model.
    """
    row = session.get(Allocation, allocation_id)
    if row is None:
        raise NotFound("allocation", allocation_id)
    if row.model_id != model_id:
        raise MissingInput(f"allocation {row.id} belongs to model {row.model_id}, not to {model_id}")
    choices = session.scalars(select(AllocationItem).where(AllocationItem.allocation_id == row.id))
    items = {
        MatrixKey(choice.layer_idx, choice.projection, choice.expert_idx): CompressionConfig.from_dict(choice.config)
        for choice in choices
    }
    return GivenIncumbent(Incumbent(row.id, row.content_hash), row.calibration_id, items)
