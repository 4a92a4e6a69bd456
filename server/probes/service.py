"""Ask a worker to measure its device."""

from __future__ import annotations

from sqlalchemy.orm import Session

from results_db.params import ProbeParams
from results_db.queue.submit import submit_job
from results_db.states import JobKind
from results_db.tables import Job
from server.kit.checks import check_configs


def submit_probe(session: Session, params: ProbeParams) -> Job:
    """A probe job."""
    configs = None if params.configs is None else check_configs(params.configs, "configs")
    return submit_job(session, JobKind.PROBE, {"configs": configs, "seconds": params.seconds})
