"""`bitbudget demo`: everything, from nothing to the headline."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from cli.api import Api
from cli.commands.submit import submit_study
from cli.commands.up import PortOption
from cli.commands.wait import watch
from cli.credential import find_token
from cli.options import JsonOption, settings
from cli.output import duration, say
from cli.stack.detached import start_background
from cli.stack.plan import ROOT
from cli.stack.record import StackRecord, running_stack
from cli.watch.snapshot import Snapshot

CONFIG = ROOT / "configs" / "demo.yaml"


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up (also KEEP=1).")] = False,
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="Another study than the demo's.")] = CONFIG,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the study; repeatable.")
    ] = None,
    port: PortOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start the stack, run the demo study over the HTTP API, print its gates and its headline, stop the stack.

    What was measured stays in ./var: a second run reuses it. A stack that runs already is used and left up.

    \b
    Examples:
      bitbudget demo
      bitbudget demo --keep
      bitbudget demo --config configs/demo.yaml --set evaluation.windows=32
    """
    keep = keep or os.environ.get("KEEP", "") not in ("", "0")
    current = settings(port)
    began = time.monotonic()
    record = running_stack(current.var_dir)
    if record is not None:
        say(f"using the stack that runs at {record.url}")
        snapshot = _study(record, config, overrides or [], as_json=as_json)
        _where(record, snapshot, began, up=True)
        raise typer.Exit(snapshot.exit_code)
    say("starting redis, server and worker")
    program, record = start_background(current, outlives_us=keep)
    left_up = False
    try:
        snapshot = _study(record, config, overrides or [], as_json=as_json)
        left_up = keep
    finally:
        if not left_up:
            program.stop()
    _where(record, snapshot, began, up=left_up)
    raise typer.Exit(snapshot.exit_code)


def _study(record: StackRecord, config: Path, overrides: list[str], *, as_json: bool) -> Snapshot:
    say(f"page  {record.url}/")
    with Api(record.url, token=find_token()) as api:
        study = submit_study(api, config, overrides)
        say(f"study {study['id']} ({study['name']}), {len(study['jobs'])} steps")
        return watch(api, study["id"], as_json=as_json)


def _where(record: StackRecord, snapshot: Snapshot, began: float, *, up: bool) -> None:
    say("")
    say(f"took      {duration(time.monotonic() - began)}")
    say(f"database  {record.database_url}")
    say(f"study     {snapshot.row['id']}")
    if up:
        say(f"page      {record.url}/ (stop the stack with: bitbudget down)")
    else:
        say("the stack is stopped; to see the page: bitbudget up")
    say('query     bitbudget sql "SELECT * FROM evaluations_overview"')
