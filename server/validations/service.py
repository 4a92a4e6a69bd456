"""Ask a worker to validate allocations, and show what it found."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db.params import ValidateParams
from results_db.queue.submit import submit_job
from results_db.settings import Settings
from results_db.states import JobKind
from results_db.tables import Allocation, Job, Model, Validation, ValidationItem
from server.kit.checks import check_calibration, check_text
from server.kit.problem import invalid
from server.kit.rows import get_row
from server.models.service import require_local


def submit_validation(session: Session, params: ValidateParams, settings: Settings) -> Job:
    """A validate job under the calibration named, that of the allocations, or the model's newest.

    Raises:
        NotFound, Problem: something that the request names is missing, or of another model.
    """
    # before the session's first statement, with which the write lock comes: texts may be large, their disks slow
    text = check_text(params.text, settings, "text")
    require_local(get_row(session, Model, params.model_id))
    named = {f"allocation_ids.{i}": id_ for i, id_ in enumerate(params.allocation_ids)}
    if params.incumbent is not None:
        named["incumbent"] = params.incumbent
    made_under = set()
    for field, id_ in named.items():
        allocation = get_row(session, Allocation, id_)
        if allocation.model_id != params.model_id:
            raise invalid(field, f"{id_} is an allocation of model {allocation.model_id}")
        made_under |= {allocation.calibration_id} - {None}
    if params.calibration_id is None and len(made_under) > 1:
        raise invalid("allocation_ids", "they were made under several calibrations: name one by calibration_id")
    wanted = params.calibration_id or next(iter(made_under), None)
    checked = params.model_copy(
        update={
            "calibration_id": check_calibration(session, params.model_id, wanted).id,
            "text": text,
        }
    )
    return submit_job(session, JobKind.VALIDATE, checked.model_dump(mode="json"))


def describe_validation(session: Session, validation: Validation) -> dict[str, Any]:
    """The validation with its items, the original among them."""
    query = select(ValidationItem).where(ValidationItem.validation_id == validation.id)
    items = session.scalars(query.order_by(ValidationItem.position))
    return validation.as_dict() | {"items": [item.as_dict() for item in items]}
