"""`bitbudget plan`: what a study would cost, and whether it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from cli.api import Api
from cli.commands.wait import TimeoutOption
from cli.errors import CliError, ExitCode
from cli.options import JsonOption, ServerOption, connect
from cli.output import out, print_json
from cli.plan_table import plan_sentences, plan_table, verdict
from cli.study_file import load_study
from cli.watch.follow import wait_for
from cli.watch.presenters import presenter


def plan(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="A study.", exists=True, dir_okay=False)],
    server: ServerOption = None,
    as_json: JsonOption = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the study; repeatable.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help='"cpu", or a card: one that was measured, or RTX 3090, RTX 4090, A100, …'),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the worker's device first; it takes about a minute.")
    ] = False,
    measure_for: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, max=3600, help="Measure for no more than about so long.")
    ] = 60.0,
    timeout: TimeoutOption = None,
) -> None:
    """Say what a study would cost, step by step, and whether it fits; nothing is submitted.

    Only config.json and the headers of the weights are looked at, and a hub model needs no commit. Times come from what
    the machine was measured to do (--measure), from the measurements in the database, or, for a card that nobody
    measured, from its published peaks. Exit code 1: it does not fit, with what would make it fit.

    \b
    Examples:
      bitbudget plan configs/demo.yaml --measure
      bitbudget plan configs/qwen2_72b_study.yaml --device "RTX 3090"
      bitbudget plan configs/qwen2_72b_study.yaml --device "RTX 3090" --set calibration.samples=256 --json
    """
    body = {"config": load_study(file, overrides or (), pinned=False), "device": device}
    with connect(server) as api:
        found = api.post("/plans", body)
        if measure:
            _measure(api, found["probe"] | {"seconds": measure_for}, quiet=as_json, timeout=timeout)
            found = api.post("/plans", body)
    if as_json:
        print_json(found)
    else:
        show(found)
    raise typer.Exit(ExitCode.OK if found["fits"] else ExitCode.FAILED)


def show(found: dict[str, Any]) -> None:
    """The table, what it rests on, the verdict."""
    console = out()
    console.print(plan_table(found))
    console.print()
    for sentence in plan_sentences(found):
        console.print(Text(sentence))
    console.print(verdict(found))


def _measure(api: Api, params: dict[str, Any], *, quiet: bool, timeout: float | None) -> None:
    """Run a probe on whichever worker is free.

    Raises:
        CliError: it failed, or ``--timeout`` ran out.
    """
    job = api.post("/probes", params)
    ended = wait_for(api, job["id"], presenter(quiet=quiet), timeout_s=timeout)
    if ended.row["state"] != "succeeded":
        reason = (ended.row.get("error") or {}).get("message", "no reason was given")
        raise CliError(f"the probe {job['id']} is {ended.row['state']}: {reason}", code=ExitCode.FAILED)
