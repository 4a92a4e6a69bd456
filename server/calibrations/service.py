"""Ask a worker for a calibration."""

from __future__ import annotations

from sqlalchemy.orm import Session

from results_db.params import CalibrateParams
from results_db.queue.submit import submit_job
from results_db.settings import Settings
from results_db.states import JobKind
from results_db.tables import Job, Model
from server.kit.checks import check_text
from server.kit.rows import get_row
from server.models.service import require_local


def submit_calibration(session: Session, params: CalibrateParams, settings: Settings) -> Job:
    """A calibrate job."""
    require_local(get_row(session, Model, params.model_id))
    checked = params.model_copy(update={"text": check_text(params.text, settings, "text")})
    return submit_job(session, JobKind.CALIBRATE, checked.model_dump(mode="json"))
