"""Ask a worker for a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from compress_core.calibrate.archive import Archive
from compress_core.calibrate.archive_names import match_arrays
from compress_core.errors import CalibrationError
from compress_core.matrix import MatrixSpec
from results_db import Database
from results_db.params import CalibrateParams
from results_db.queue.submit import submit_job
from results_db.settings import Settings
from results_db.states import JobKind
from results_db.tables import Job, Model
from server.kit.checks import check_text
from server.kit.problem import core_problem, invalid
from server.kit.rows import get_row
from server.models.service import model_specs, require_local


def check_calibrating(database: Database, params: CalibrateParams, settings: Settings) -> CalibrateParams:
    """The request with absolute paths; before any transaction that writes: texts and archives may take long to read.

    Raises:
        NotFound, Problem: the model is not there, or its text; an archive that does not fit the model, as far as
            headers tell.
        PathNotAllowed: a path outside the allowed folders.
    """
    with database.read() as session:
        model = require_local(get_row(session, Model, params.model_id))
        specs = model_specs(model) if params.npz is not None else ()
    checked: dict[str, Any]
    if params.npz is None:
        checked = {"text": check_text(params.text, settings, "text")}
    else:
        checked = {"npz": _check_archive(params, specs, settings)}
    return params.model_copy(update=checked)


def submit_calibration(session: Session, checked: CalibrateParams) -> Job:
    """A calibrate job."""
    require_local(get_row(session, Model, checked.model_id))
    return submit_job(session, JobKind.CALIBRATE, checked.model_dump(mode="json"))


def _check_archive(params: CalibrateParams, specs: Sequence[MatrixSpec], settings: Settings) -> str:
    """The absolute path of an archive that has what the model needs."""
    path = settings.resolve_path(params.npz or "")
    if not path.is_file():
        raise invalid("npz", f"{params.npz} is no file: give an .npz", slug="archive-not-found")
    try:
        match = match_arrays(Archive.open(path).arrays, specs)
        if params.npz_fill is None:
            match.check_complete()
    except CalibrationError as error:
        raise core_problem(error, "npz") from error
    return str(path)
