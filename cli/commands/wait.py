"""`bitbudget wait`: until a job or study ends."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from cli.api import Api
from cli.options import JsonOption, ServerOption, connect
from cli.output import out, print_json, say
from cli.tables import gate_remarks, gate_table, headline_sentences, headline_tables
from cli.watch.follow import wait_for
from cli.watch.presenters import presenter
from cli.watch.snapshot import Snapshot

TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", help="Give up waiting after so long; the work goes on.")
]
PollOption = Annotated[
    float | None,
    typer.Option(
        "--poll", metavar="SECONDS", min=0.1, help="Ask every so often instead of following the event stream."
    ),
]


def wait(
    id_: Annotated[str, typer.Argument(metavar="ID", help="A job or a study.")],
    server: ServerOption = None,
    as_json: JsonOption = False,
    timeout: TimeoutOption = None,
    poll: PollOption = None,
) -> None:
    """Wait until a job or study ends, with live progress.

    Progress follows the server's event stream, which is opened again where it left off when it breaks; --poll asks
    instead, for proxies that hold streams back. Exit code 0: succeeded, 1: failed, cancelled or dead, 4: a NO-GO
    stopped the study, 6: --timeout ran out.

    \b
    Examples:
      bitbudget wait job_0192f3a4b5c9f1e2d3c4b5a
      bitbudget wait STUDY --timeout 600 --json
    """
    with connect(server) as api:
        snapshot = watch(api, id_, as_json=as_json, timeout=timeout, poll=poll)
    raise typer.Exit(snapshot.exit_code)


def watch(api: Api, id_: str, *, as_json: bool, timeout: float | None = None, poll: float | None = None) -> Snapshot:
    """Wait with progress and print what came of it."""
    snapshot = wait_for(api, id_, presenter(quiet=as_json), timeout_s=timeout, poll_s=poll)
    if as_json:
        print_json(snapshot.row)
    elif snapshot.noun == "study":
        report(snapshot)
    else:
        say(f"{id_} {snapshot.row['state']}")
        if snapshot.row.get("error"):
            say(str(snapshot.row["error"].get("message")))
    return snapshot


def report(snapshot: Snapshot) -> None:
    """The gate table, the headline, and why the study ended if it did not succeed."""
    console = out()
    study = snapshot.row
    if study.get("gates"):
        console.print(gate_table(study["gates"]))
        console.print()
        for remark in gate_remarks(study["gates"]):
            console.print(Text(remark))
        console.print()
    if study.get("headline"):
        for shown in headline_tables(study["headline"]):
            console.print(shown)
            console.print()
        for sentence in headline_sentences(study["headline"]):
            console.print(Text(sentence, style="bold"))
    if study["state"] != "succeeded":
        reason = f": {study['reason']}" if study.get("reason") else ""
        console.print(Text(f"The study is {study['state']}{reason}", style="bold red"))
