"""Ask a worker for sensitivities."""

from __future__ import annotations

from sqlalchemy.orm import Session

from results_db.params import SensitivityParams
from results_db.queue.submit import submit_job
from results_db.settings import Settings
from results_db.states import JobKind
from results_db.tables import Allocation, Job, Model
from server.kit.checks import check_calibration, check_config, check_configs, check_text
from server.kit.problem import invalid
from server.kit.rows import get_row
from server.models.service import require_local


def submit_sensitivity(session: Session, params: SensitivityParams, settings: Settings) -> Job:
    """A sensitivity job under the calibration named, or the model's newest."""
    # before the session's first statement, with which the write lock comes: texts may be large, their disks slow
    text = check_text(params.text, settings, "text")
    anchors = check_configs(params.anchors, "anchors")
    require_local(get_row(session, Model, params.model_id))
    if params.incumbent_allocation_id is not None:
        incumbent = get_row(session, Allocation, params.incumbent_allocation_id)
        if incumbent.model_id != params.model_id:
            raise invalid("incumbent_allocation_id", f"{incumbent.id} is an allocation of model {incumbent.model_id}")
    checked = params.model_copy(
        update={
            "calibration_id": check_calibration(session, params.model_id, params.calibration_id).id,
            "anchors": anchors,
            "fidelity": params.fidelity and check_config(params.fidelity, "fidelity").to_dict(),
            "text": text,
        }
    )
    return submit_job(session, JobKind.SENSITIVITY, checked.model_dump(mode="json"))
