"""`bitbudget jobs`: list, show, cancel, retry, pause, resume, priority."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.api import segment
from cli.errors import CliError, ExitCode
from cli.filters import JOB_FILTERS, taking
from cli.options import JsonOption, ServerOption, connect
from cli.output import duration, out, print_json, say, table
from cli.watch.estimate import fraction, seconds_of

app = typer.Typer(help="List jobs and act on them.", no_args_is_help=True, rich_markup_mode=None)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
JobIds = Annotated[list[str] | None, typer.Argument(metavar="JOB...", help="Ids of jobs.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do it; without it, filters only tell what would happen.")]


@app.command("list")
def list_jobs(
    server: ServerOption = None,
    as_json: JsonOption = False,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state, for example running or failed.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind, for example sweep.")] = None,
    study: Annotated[str | None, typer.Option(metavar="STUDY", help="Only jobs of this study.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
) -> None:
    """List jobs, newest first.

    \b
    Examples:
      bitbudget jobs list --state failed
      bitbudget jobs list --kind sweep --json
    """
    with connect(server) as api:
        jobs = list(api.items("/jobs", limit=limit, state=state, kind=kind, study_id=study))
    if as_json:
        print_json(jobs)
        return
    rows = [
        (
            job["id"],
            job["kind"],
            job["step"],
            job["state"],
            f"{fraction(job):.0%}",
            duration(seconds_of(job)) if job["started_at"] else None,
            (job["error"] or {}).get("message"),
        )
        for job in jobs
    ]
    out().print(table(("job", "kind", "step", "state", "done", "took", "error"), rows))


@app.command()
def show(id_: JobId, server: ServerOption = None, as_json: JsonOption = False) -> None:
    """Show one job: parameters, progress, result, error, and every attempt at it.

    \b
    Example:
      bitbudget jobs show job_0192f3a4b5c9f1e2d3c4b5a
    """
    with connect(server) as api:
        job = api.get(f"/jobs/{segment(id_)}")
    if as_json:
        print_json(job)
        return
    attempts = job.pop("attempts", [])
    error = job.pop("error", None) or {}
    out().print(table(("field", "value"), job.items()))
    columns = ("number", "state", "worker_id", "started_at", "finished_at", "exit_code", "signal", "peak_rss_bytes")
    out().print(table(columns, [[attempt.get(name) for name in columns] for attempt in attempts], title="\nAttempts"))
    for name in ("code", "message", "traceback"):
        if error.get(name):
            out().print(f"\n{name}: {error[name]}", markup=False)


@app.command()
@taking(JOB_FILTERS)
def cancel(
    ids: JobIds = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
    *,
    only: dict[str, Any],
    yes: YesOption = False,
) -> None:
    """Cancel jobs; running ones stop within ten seconds. What they have recorded stays.

    By filters, nothing is done without --yes: what would happen is told.

    \b
    Examples:
      bitbudget jobs cancel job_0192f3a4b5c9f1e2d3c4b5a
      bitbudget jobs cancel --study STUDY --state queued --yes
    """
    _act_on("cancel", ids, only, server, as_json=as_json, yes=yes)


@app.command()
@taking(JOB_FILTERS)
def retry(
    ids: JobIds = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
    *,
    only: dict[str, Any],
    yes: YesOption = False,
) -> None:
    """Run failed, cancelled, dead or skipped jobs again; what they have recorded is not measured again.

    By filters, nothing is done without --yes: what would happen is told.

    \b
    Examples:
      bitbudget jobs retry job_0192f3a4b5c9f1e2d3c4b5a
      bitbudget jobs retry --state failed --state dead --yes
    """
    _act_on("retry", ids, only, server, as_json=as_json, yes=yes)


@app.command()
def pause(id_: JobId, server: ServerOption = None, as_json: JsonOption = False) -> None:
    """Pause a job; a running one gives its work back after the cell it is measuring.

    \b
    Example:
      bitbudget jobs pause job_0192f3a4b5c9f1e2d3c4b5a
    """
    _act(id_, "pause", server, as_json)


@app.command()
def resume(id_: JobId, server: ServerOption = None, as_json: JsonOption = False) -> None:
    """Queue a paused job again.

    \b
    Example:
      bitbudget jobs resume job_0192f3a4b5c9f1e2d3c4b5a
    """
    _act(id_, "resume", server, as_json)


@app.command()
def priority(
    id_: JobId,
    priority: Annotated[int, typer.Argument(min=-100, max=100, help="Higher goes first; jobs have 0 by default.")],
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a job go before those of lower priority, also before what was handed out earlier.

    \b
    Example:
      bitbudget jobs priority job_0192f3a4b5c9f1e2d3c4b5a 10
    """
    with connect(server) as api:
        job: dict[str, Any] = api.patch(f"/jobs/{segment(id_)}", {"priority": priority})
    if as_json:
        print_json(job)
        return
    say(f"{job['id']} is {job['state']}, with priority {job['priority']}")


def _act(id_: str, action: str, server: str | None, as_json: bool) -> None:
    with connect(server) as api:
        job: dict[str, Any] = api.post(f"/jobs/{segment(id_)}/{action}")
    if as_json:
        print_json(job)
        return
    asked = " (asked to stop)" if job.get("cancel_requested") or job.get("pause_requested") else ""
    say(f"{job['id']} is {job['state']}{asked}")


def _act_on(
    action: str,
    ids: list[str] | None,
    only: dict[str, Any],
    server: str | None,
    *,
    as_json: bool,
    yes: bool,
) -> None:
    """One job by its own address, so that a refusal is an error; many in one request."""
    if bool(ids) == bool(only):
        raise CliError(
            "give ids of jobs or filters, not both" if ids else f"which jobs shall {action} take?",
            cure="list ids, or give --state, --kind or --study",
        )
    if ids and len(ids) == 1:
        _act(ids[0], action, server, as_json)
        return
    body: dict[str, Any] = {"ids": ids} if ids else only | {"dry_run": not yes}
    with connect(server) as api:
        answer = api.post(f"/jobs/{action}", body)
    if as_json:
        print_json(answer)
    else:
        rows = [(item["id"], item["outcome"], item["state"], item["detail"]) for item in answer["items"]]
        out().print(table(("job", "outcome", "state", "why"), rows))
        would = "would be changed" if answer["dry_run"] else "changed"
        how = ". Nothing is done yet: add --yes" if answer["dry_run"] and answer["changed"] else ""
        more = f", {answer['left']} more match: run it again" if answer["left"] else ""
        say(f"{answer['changed']} {would}, {answer['unchanged']} unchanged, {answer['refused']} refused{more}{how}")
    if answer["refused"]:
        raise typer.Exit(ExitCode.USAGE)
