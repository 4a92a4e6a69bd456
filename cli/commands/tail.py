"""`bitbudget tail`: what happens to a job or study, line by line."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from cli.events import Event, follow
from cli.options import JsonOption, ServerOption, connect
from cli.output import cell, out, parse_time, print_json_line, say
from cli.watch.snapshot import path_of


def tail(
    id_: Annotated[str | None, typer.Argument(metavar="[ID]", help="A job or a study; default: everything.")] = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
    after: Annotated[
        int | None, typer.Option(metavar="EVENT", help="Only events with a larger id. Default: from the beginning.")
    ] = None,
) -> None:
    """Print events as they happen, from the first, until the job or study ends.

    With --json each line is one event. When the stream breaks it is opened again where it left off.

    \b
    Examples:
      bitbudget tail job_0192f3a4b5c9f1e2d3c4b5a
      bitbudget tail --json --after 1200
    """
    path = f"{path_of(id_)}/events" if id_ is not None else "/events"
    with connect(server) as api:
        for event in follow(api, path, after=None if after is None else str(after), on_gap=say):
            if event is None or event.kind == "end":
                continue
            if as_json:
                print_json_line(event.data)
            else:
                out().print(_line(event))


def _line(event: Event) -> Text:
    data: dict[str, Any] = event.data
    at = parse_time(data.get("created_at"))
    payload = " ".join(f"{name}={cell(value)}" for name, value in (data.get("payload") or {}).items())
    return Text.assemble(
        (f"{at:%H:%M:%S} " if at else "", "dim"),
        f"{data.get('job_id', '')} ",
        (f"{event.kind} ", "bold"),
        f"{data.get('state') or ''} {payload}",
    )
