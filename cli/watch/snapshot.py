"""What is watched, as the API shows it at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cli.api import Api, segment
from cli.errors import ExitCode
from cli.watch.estimate import FINISHED


@dataclass(frozen=True)
class Snapshot:
    """A study with its jobs, or one job."""

    #: "study" or "job"
    noun: str
    row: dict[str, Any]
    #: the study's jobs in their order, a split sweep in place of its layers; of a job, itself alone
    jobs: Sequence[dict[str, Any]]

    @property
    def finished(self) -> bool:
        # a study that was stopped or cancelled has its headline only when its last job has ended
        return self.row["finished_at"] is not None if self.noun == "study" else self.row["state"] in FINISHED

    @property
    def exit_code(self) -> ExitCode:
        """What the end of it means for a script."""
        match self.row["state"]:
            case "succeeded":
                return ExitCode.OK
            case "stopped":
                return ExitCode.NO_GO
        return ExitCode.FAILED


def noun_of(id_: str) -> str:
    """Ids say what they are of: ``job_…`` is a job, anything else is taken for a study."""
    return "job" if id_.startswith("job_") else "study"


def path_of(id_: str) -> str:
    """The API's path of a job or a study."""
    return f"/jobs/{segment(id_)}" if noun_of(id_) == "job" else f"/studies/{segment(id_)}"


def take(api: Api, id_: str) -> Snapshot:
    """Ask the server."""
    row = api.get(path_of(id_))
    if noun_of(id_) == "job":
        return Snapshot("job", row, [_shown(row, is_split=bool(row.get("parts")))])
    return Snapshot("study", row, without_parts(sorted(row["jobs"], key=lambda job: job["position"])))


def without_parts(jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The jobs without the layers of split sweeps: the sweep itself shows how far they are."""
    wholes = {job["params"].get("part_of") for job in jobs}
    return [_shown(job, is_split=job["id"] in wholes) for job in jobs if job["params"].get("part_of") is None]


def _shown(job: dict[str, Any], *, is_split: bool) -> dict[str, Any]:
    """A sweep that waits for its own layers runs as soon as they report."""
    under_way = is_split and job["state"] == "waiting" and job["progress"] is not None
    return job | {"state": "running"} if under_way else job
