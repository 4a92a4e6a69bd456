"""Ask a worker for a calibration."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from compress_core.calibrate.archive import Archive
from compress_core.calibrate.archive_names import match_arrays
from compress_core.errors import CalibrationError
from results_db.params import CalibrateParams
from results_db.queue.submit import submit_job
from results_db.settings import Settings
from results_db.states import JobKind
from results_db.tables import Job, Model
from server.kit.checks import check_text
from server.kit.problem import core_problem, invalid
from server.kit.rows import get_row
from server.models.service import model_specs, require_local


def submit_calibration(session: Session, params: CalibrateParams, settings: Settings) -> Job:
    """A calibrate job.

    Raises:
        Problem: the model is not there, or its text; an archive that does not fit the model, as far as headers tell.
        PathNotAllowed: a path outside the allowed folders.
    """
    model = require_local(get_row(session, Model, params.model_id))
    checked: dict[str, Any]
    if params.npz is None:
        checked = {"text": check_text(params.text, settings, "text")}
    else:
        checked = {"npz": _check_archive(params, model, settings)}
    return submit_job(session, JobKind.CALIBRATE, params.model_copy(update=checked).model_dump(mode="json"))


def _check_archive(params: CalibrateParams, model: Model, settings: Settings) -> str:
    """The absolute path of an archive that has what the model needs."""
    path = settings.resolve_path(params.npz or "")
    if not path.is_file():
        raise invalid("npz", f"{params.npz} is no file: give an .npz", slug="archive-not-found")
    try:
        match = match_arrays(Archive.open(path).arrays, model_specs(model))
        if params.npz_fill is None:
            match.check_complete()
    except CalibrationError as error:
        raise core_problem(error, "npz") from error
    return str(path)
