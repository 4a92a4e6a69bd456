"""The worker's work done by this process, for tests of what a job records: no fork, no Redis, and torch loaded once."""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path
from typing import Any

from results_db.queue.lease import claim_attempt
from results_db.queue.promote import promote_waiting
from results_db.settings import Settings
from results_db.states import TERMINAL, JobState
from results_db.tables import Job
from tests.service import Service
from worker.current import CurrentWorker
from worker.device import CPU
from worker.registration import register
from worker.run import run_claimed
from worker.stop import StopRequest

#: no pause of this process is a lost worker
LEASE_S = 300.0


class Hands(Service):
    """As the service with its worker; jobs are run when somebody waits for their end."""

    def __init__(self, database_url: str, redis_url: str, folder: Path, repo: Path, roots: list[Path]) -> None:
        super().__init__(database_url, redis_url, folder, repo, roots)
        settings = Settings(
            database_url=database_url, var_dir=folder, model_roots=tuple(roots), lease_s=LEASE_S, retry_base_s=0.0
        )
        self._me = CurrentWorker(register(self.database, "hands", CPU), os.getpid(), settings, CPU, StopRequest())

    def start_worker(self, **_: Any) -> Any:
        raise AssertionError("no worker is started here")

    def worker(self) -> Any:
        """None: this process is at hand."""

    def finish(self, job_id: str) -> Job:
        """Run a job to its end, with as many attempts as that takes."""
        while JobState(self.job(job_id).state) not in TERMINAL:
            with self.database.write() as session:
                promote_waiting(session)
            newest = self.attempts(job_id)[-1].id
            with self.database.write() as session:
                claim = claim_attempt(session, newest, worker_id=self._me.id, lease_s=LEASE_S)
            assert claim is not None, "the attempt is not due"
            run_claimed(self.database, claim, self._me)
            # a job's end turns it off, and pytest wants it on
            faulthandler.enable(2)
        return self.job(job_id)
