"""`bitbudget queue` and `bitbudget workers`: the queue's switch, what is in it, who works on it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.api import segment
from cli.options import JsonOption, ServerOption, connect
from cli.output import out, print_json, say, table

app = typer.Typer(help="Look at the queue, pause and resume it.", no_args_is_help=True, rich_markup_mode=None)
workers_app = typer.Typer(help="List workers and drain them.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def show(server: ServerOption = None, as_json: JsonOption = False) -> None:
    """Show the switch, the jobs that have not ended, the workers, and whether Redis answers.

    \b
    Example:
      bitbudget queue show
    """
    with connect(server) as api:
        found: dict[str, Any] = api.get("/queue")
    _tell(found, as_json)


@app.command()
def pause(
    server: ServerOption = None,
    as_json: JsonOption = False,
    reason: Annotated[str | None, typer.Option(help="Why: shown to everybody who looks.")] = None,
) -> None:
    """Hand out nothing more: what runs goes on, nothing new begins until the queue is resumed.

    \b
    Example:
      bitbudget queue pause --reason "the card is needed until six"
    """
    with connect(server) as api:
        found: dict[str, Any] = api.post("/queue/pause", {"reason": reason})
    _tell(found, as_json)


@app.command()
def resume(server: ServerOption = None, as_json: JsonOption = False) -> None:
    """Let the queue run again, the most urgent job first.

    \b
    Example:
      bitbudget queue resume
    """
    with connect(server) as api:
        found: dict[str, Any] = api.post("/queue/resume")
    _tell(found, as_json)


@workers_app.command("list")
def list_workers(
    server: ServerOption = None,
    as_json: JsonOption = False,
    state: Annotated[str | None, typer.Option(help="Only those that are up, or down.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
) -> None:
    """List workers, newest first.

    \b
    Example:
      bitbudget workers list --state up
    """
    with connect(server) as api:
        workers = list(api.items("/workers", limit=limit, state=state))
    if as_json:
        print_json(workers)
        return
    rows = [
        (
            worker["id"],
            worker["name"],
            worker["device"],
            "draining" if worker["drain_requested"] and worker["state"] == "up" else worker["state"],
            worker["heartbeat_at"],
        )
        for worker in workers
    ]
    out().print(table(("worker", "name", "device", "state", "last seen"), rows))


@workers_app.command()
def drain(
    id_: Annotated[str, typer.Argument(metavar="WORKER", help="The worker's id.")],
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a worker finish what it does, take nothing more, and end. `bitbudget up` starts its own ones again.

    \b
    Example:
      bitbudget workers drain wrk_0192f3a4b5c9f1e2d3c4b5a
    """
    with connect(server) as api:
        worker: dict[str, Any] = api.post(f"/workers/{segment(id_)}/drain")
    if as_json:
        print_json(worker)
        return
    say(f"worker {worker['name']} finishes what it does and ends")


def _tell(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    reason = f": {found['reason']}" if found["reason"] else ""
    say(f"paused since {found['paused_at']}{reason}" if found["paused_at"] else "the queue runs")
    rows = [(state, kind, n) for state, kinds in found["jobs"].items() for kind, n in kinds.items()]
    if rows:
        out().print(table(("state", "kind", "jobs"), rows))
    workers = found["workers"]
    draining = f", {workers['draining']} draining" if workers["draining"] else ""
    say(f"{workers['up']} workers up, {workers['busy']} busy{draining}; {found['due']} attempts due")
    if found["next_due_at"]:
        say(f"the next wait between attempts is over at {found['next_due_at']}")
    say(found["redis"]["detail"])
