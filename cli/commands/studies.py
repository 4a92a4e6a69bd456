"""`bitbudget studies`: list, show with gates and headline, cancel."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.api import segment
from cli.commands.wait import report
from cli.options import JsonOption, ServerOption, connect
from cli.output import duration, out, print_json, say, table
from cli.watch.estimate import fraction, seconds_of
from cli.watch.snapshot import take

app = typer.Typer(help="List studies, show their gates and headline, cancel them.", no_args_is_help=True)

StudyId = Annotated[str, typer.Argument(metavar="STUDY", help="The study's id.")]


@app.command("list")
def list_studies(
    server: ServerOption = None,
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
) -> None:
    """List studies, newest first.

    \b
    Example:
      bitbudget studies list
    """
    with connect(server) as api:
        studies = list(api.items("/studies", limit=limit))
    if as_json:
        print_json(studies)
        return
    columns = ("id", "name", "state", "created_at", "reason")
    out().print(table(columns, [[study.get(name) for name in columns] for study in studies]))


@app.command()
def show(id_: StudyId, server: ServerOption = None, as_json: JsonOption = False) -> None:
    """Show a study: its steps, its gates, its headline.

    \b
    Example:
      bitbudget studies show STUDY
    """
    with connect(server) as api:
        snapshot = take(api, id_)
    if as_json:
        print_json(snapshot.row)
        return
    rows = [
        (job["id"], job["step"], job["state"], f"{fraction(job):.0%}", duration(seconds_of(job)))
        for job in snapshot.jobs
    ]
    out().print(table(("job", "step", "state", "done", "took"), rows, title=snapshot.row.get("name")))
    out().print()
    report(snapshot)


@app.command()
def cancel(id_: StudyId, server: ServerOption = None, as_json: JsonOption = False) -> None:
    """Cancel a study: what runs stops, what waits does not start, what was measured stays.

    \b
    Example:
      bitbudget studies cancel STUDY
    """
    with connect(server) as api:
        study = api.post(f"/studies/{segment(id_)}/cancel")
    if as_json:
        print_json(study)
    else:
        say(f"{id_} is {study['state']}")
