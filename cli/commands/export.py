"""`bitbudget export`: measurements as files."""

from __future__ import annotations

import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import httpx
import typer

from cli.api import Api
from cli.errors import CliError, Unreachable
from cli.options import JsonOption, ServerOption, connect
from cli.output import print_json, say

app = typer.Typer(help="Write results to files.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Write results to files."""


class ExportFormat(StrEnum):
    JSONL = "jsonl"
    CSV = "csv"


@app.command()
def measurements(
    format_: Annotated[ExportFormat, typer.Option("--format", help="jsonl or csv.")] = ExportFormat.JSONL,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: stdout.")] = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
    model: Annotated[str | None, typer.Option(metavar="MODEL_ID", help="Only this model.")] = None,
    calibration: Annotated[str | None, typer.Option(metavar="CALIBRATION_ID", help="Only under this one.")] = None,
    sweep: Annotated[str | None, typer.Option(metavar="SWEEP_ID", help="Only this sweep.")] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="Only this layer_idx.")] = None,
    projection: Annotated[str | None, typer.Option(help="Only this projection: q, k, v, o, gate, up, down.")] = None,
    b_q: Annotated[int | None, typer.Option("--b-q", help="Only this b_q.")] = None,
    rank: Annotated[int | None, typer.Option(help="Only this rank.")] = None,
    codebook: Annotated[
        str | None, typer.Option(help="Only this codebook: trellis, e8, scalar, raw, rtn, gptq.")
    ] = None,
    states: Annotated[int | None, typer.Option(help="Only so many states of the trellis.")] = None,
) -> None:
    """Export measurements: the error and the bytes of every (matrix, config).

    The file appears under its name only when it is complete. With --json, what was written is told as JSON (needs
    --output).

    \b
    Examples:
      bitbudget export measurements --format csv -o measurements.csv
      bitbudget export measurements --projection down --b-q 2 | head
    """
    if as_json and output is None:
        raise CliError("--json tells what was written, and stdout is taken by the export", cure="add --output FILE")
    filters = {
        "model_id": model,
        "calibration_id": calibration,
        "sweep_id": sweep,
        "layer_idx": layer,
        "projection": projection,
        "b_q": b_q,
        "rank": rank,
        "codebook": codebook,
        "states": states,
    }
    with connect(server) as api:
        if output is None:
            _copy(api, format_, filters, sys.stdout.buffer)
            return
        if not output.name:
            raise CliError(f"{output} names no file", cure="write --output FILE")
        partial = output.with_name(output.name + ".part")
        try:
            with partial.open("wb") as file:
                nbytes = _copy(api, format_, filters, file)
            partial.replace(output)
        except OSError as error:
            raise CliError(f"cannot write {output}: {error.strerror}") from error
        finally:
            with suppress(OSError):
                partial.unlink()
    if as_json:
        print_json({"path": str(output), "format": format_.value, "nbytes": nbytes})
    else:
        say(f"wrote {output} ({nbytes:,} bytes)")


def _copy(api: Api, format_: ExportFormat, filters: dict[str, Any], file: BinaryIO) -> int:
    written = 0
    try:
        with api.stream("/measurements/export", format=format_.value, **filters) as response:
            for chunk in response.iter_bytes():
                written += file.write(chunk)
            file.flush()
    except httpx.TransportError as error:
        raise Unreachable(api.url, "the export broke off before its end") from error
    return written
