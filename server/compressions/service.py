"""Ask a worker to pack a model."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.resolve import hub_cache
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError
from compress_core.pack.layout import fixed_bytes
from results_db.params import AllocateParams, CompressParams, ConfigFields
from results_db.queue.submit import submit_job
from results_db.settings import Settings
from results_db.states import JobKind
from results_db.tables import Allocation, Job, Model
from server.allocations.service import AllocationDraft, compute_allocation, save_allocation
from server.allocations.winner import Winner
from server.compressions.schemas import CompressionRequest
from server.kit.checks import check_calibration
from server.kit.problem import invalid
from server.kit.rows import get_row
from server.models.service import require_local


@dataclass(frozen=True, eq=False, slots=True)
class CheckedCompression:
    """A request of which everything was read that takes long to read."""

    params: CompressParams
    #: what the overrides say, not stored yet; None = the request names its allocation
    overrides: AllocationDraft | Winner | None


def check_compression(session: Session, request: CompressionRequest, settings: Settings) -> CheckedCompression:
    """Read the overrides and the head's tensors; before any transaction that writes: others would wait for its lock.

    Raises:
        NotFound, Problem: the model, the overrides or the head is missing or wrong; both an allocation and overrides.
        PathNotAllowed: the model's folder, or a file in it, leads out of the model roots by now.
        CheckpointError: the model's files are gone or damaged.
    """
    model = require_local(get_row(session, Model, request.model_id))
    params = CompressParams(**request.model_dump(exclude={"overrides_yaml"}))
    overrides = None
    if request.overrides_yaml is not None:
        if params.allocation_id is not None:
            raise invalid("overrides_yaml", "the allocation has its configs already: give the one or the other")
        overrides = compute_allocation(session, _allocate_params(request, request.overrides_yaml))
    if params.head is not None:
        _check_head(model, params.head, settings)
    return CheckedCompression(params, overrides)


def submit_compression(session: Session, checked: CheckedCompression) -> Job:
    """A compress job under the calibration named, the allocation's, or the model's newest.

    Raises:
        NotFound, Problem: something that the request names is missing or wrong.
    """
    params = checked.params
    if checked.overrides is not None:
        # as an allocation, so that the packed model can be told by its configs
        (stored,) = save_allocation(session, checked.overrides)
        params = params.model_copy(update={"allocation_id": stored.id})
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
    params = params.model_copy(update={"calibration_id": calibration.id})
    return submit_job(session, JobKind.COMPRESS, params.model_dump(mode="json"))


def _allocate_params(request: CompressionRequest, overrides_yaml: str) -> AllocateParams:
    return AllocateParams(
        model_id=request.model_id,
        calibration_id=request.calibration_id,
        name="overrides",
        kind="overrides",
        overrides_yaml=overrides_yaml,
    )


def _check_head(model: Model, head: ConfigFields, settings: Settings) -> None:
    """Refuse what the job would refuse: no config, a rank that the head cannot have, a head that is tied."""
    assert model.local_path is not None, "require_local has seen to it"
    # looked at again: links may have been laid since the model was registered
    folder = settings.resolve_folder(model.local_path, also=(hub_cache(),))
    try:
        fixed_bytes(open_checkpoint(folder), head=CompressionConfig.from_dict(head))
    except ConfigError as error:
        raise invalid("head", str(error)) from error
