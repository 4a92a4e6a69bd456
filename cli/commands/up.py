"""`bitbudget up`: the stack in the foreground."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from cli.options import settings
from cli.output import say
from cli.stack.stack import Stack
from results_db.masking import mask_url

PortOption = Annotated[
    int | None, typer.Option(help="Port of the server; 0 takes a free one. Default: BITBUDGET_PORT, else 8000.")
]


WorkersOption = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="So many workers share the queue: on the CPU its cores, else a GPU each."),
]


def up(port: PortOption = None, workers: WorkersOption = 1) -> None:
    """Run Redis, the server and one worker, or several, until Ctrl-C.

    The server brings the database to the newest schema. Everything lives in ./var (BITBUDGET_VAR_DIR): the database,
    the logs, calibrations and packed models. A program that dies is named with the end of its log and started again. A
    Redis or a PostgreSQL of your own is used when BITBUDGET_REDIS_URL or BITBUDGET_DATABASE_URL name one.

    \b
    Examples:
      bitbudget up
      bitbudget up --port 8001
      bitbudget up --workers 2
      BITBUDGET_DEVICE="RTX 3090" bitbudget up
    """
    chosen = settings(port)
    stack = Stack(chosen, say, n_workers=workers)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stack.stop.set())
    with stack:
        say(f"page      {stack.plan.url}/")
        say(f"API       {stack.plan.url}/docs")
        say(f"database  {stack.record.database_url}")
        say(f"redis     {mask_url(stack.plan.redis_url)}")
        say("Ctrl-C stops everything")
        stack.supervise()
        say("stopping worker, server, redis")
    say("stopped")
