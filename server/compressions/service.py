"""Ask a worker to pack a model."""

from __future__ import annotations

from sqlalchemy.orm import Session

from compress_core.checkpoint import open_checkpoint
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError
from compress_core.pack.layout import fixed_bytes
from results_db.params import AllocateParams, CompressParams, ConfigFields
from results_db.queue.submit import submit_job
from results_db.states import JobKind
from results_db.tables import Allocation, Job, Model
from server.allocations.service import compute_allocation, save_allocation
from server.compressions.schemas import CompressionRequest
from server.kit.checks import check_calibration
from server.kit.problem import invalid
from server.kit.rows import get_row
from server.models.service import require_local


def submit_compression(session: Session, request: CompressionRequest) -> Job:
    """A compress job under the calibration named, the allocation's, or the model's newest.

    Raises:
        NotFound, Problem: something that the request names is missing or wrong; both an allocation and overrides.
    """
    model = get_row(session, Model, request.model_id)
    require_local(model)
    params = CompressParams(**request.model_dump(exclude={"overrides_yaml"}))
    if request.overrides_yaml is not None:
        if params.allocation_id is not None:
            raise invalid("overrides_yaml", "the allocation has its configs already: give the one or the other")
        params = params.model_copy(update={"allocation_id": _stored(session, request, request.overrides_yaml).id})
    if params.allocation_id is None:
        raise invalid(
            "allocation_id",
            "name the allocation (POST /api/v1/allocations makes one; uniform is one too), or give overrides_yaml",
        )
    allocation = get_row(session, Allocation, params.allocation_id)
    if allocation.model_id != params.model_id:
        raise invalid("allocation_id", f"{allocation.id} is an allocation of model {allocation.model_id}")
    wanted = params.calibration_id or allocation.calibration_id
    calibration = check_calibration(session, params.model_id, wanted)
    if params.head is not None:
        _check_head(model, params.head)
    checked = params.model_copy(update={"calibration_id": calibration.id})
    return submit_job(session, JobKind.COMPRESS, checked.model_dump(mode="json"))


def _stored(session: Session, request: CompressionRequest, overrides_yaml: str) -> Allocation:
    """The overrides as an allocation, so that the packed model can be told by its configs."""
    asked = AllocateParams(
        model_id=request.model_id,
        calibration_id=request.calibration_id,
        name="overrides",
        kind="overrides",
        overrides_yaml=overrides_yaml,
    )
    (stored,) = save_allocation(session, compute_allocation(session, asked))
    return stored


def _check_head(model: Model, head: ConfigFields) -> None:
    """Refuse what the job would refuse: no config, a rank that the head cannot have, a head that is tied."""
    assert model.local_path is not None, "require_local has seen to it"
    try:
        fixed_bytes(open_checkpoint(model.local_path), head=CompressionConfig.from_dict(head))
    except ConfigError as error:
        raise invalid("head", str(error)) from error
