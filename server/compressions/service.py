"""Ask a worker to pack a model."""

from __future__ import annotations

from sqlalchemy.orm import Session

from results_db.params import CompressParams
from results_db.queue.submit import submit_job
from results_db.states import JobKind
from results_db.tables import Allocation, Job, Model
from server.kit.checks import check_calibration
from server.kit.problem import invalid
from server.kit.rows import get_row
from server.models.service import require_local


def submit_compression(session: Session, params: CompressParams) -> Job:
    """A compress job under the calibration named, the allocation's, or the model's newest."""
    require_local(get_row(session, Model, params.model_id))
    if params.allocation_id is None:
        raise invalid("allocation_id", "name the allocation: POST /api/v1/allocations makes one (uniform is one too)")
    allocation = get_row(session, Allocation, params.allocation_id)
    if allocation.model_id != params.model_id:
        raise invalid("allocation_id", f"{allocation.id} is an allocation of model {allocation.model_id}")
    wanted = params.calibration_id or allocation.calibration_id
    calibration = check_calibration(session, params.model_id, wanted)
    checked = params.model_copy(update={"calibration_id": calibration.id})
    return submit_job(session, JobKind.COMPRESS, checked.model_dump(mode="json"))
