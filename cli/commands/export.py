"""`bitbudget export`: tables of results as files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import httpx
import typer

from cli.api import Api, segment
from cli.errors import CliError, Unreachable
from cli.filters import EXPORT_FILTERS, taking
from cli.options import JsonOption, ServerOption, connect
from cli.output import out, print_json, say, table

#: the server's header of schema and provenance
_HEADER = "X-Bitbudget-Export"


class ExportFormat(StrEnum):
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


@taking(EXPORT_FILTERS)
def export(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="What to export; default: list it.")] = None,
    format_: Annotated[ExportFormat, typer.Option("--format", help="jsonl, csv or parquet.")] = ExportFormat.JSONL,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: stdout.")] = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="KEY=VALUE", help="Only these rows; again for more.")
    ] = None,
    *,
    only: dict[str, Any],
) -> None:
    """Write a table of results to a file; without a name, list the tables with their filters.

    The file appears under its name only when it is complete. What a CSV cannot say of itself (schema, version, filters)
    lies beside it as FILE.schema.json; the other forms have it inside. With --json, what was written is told as JSON
    (needs --output).

    \b
    Examples:
      bitbudget export
      bitbudget export measurements --format parquet -o measurements.parquet
      bitbudget export evaluation_items --where evaluation_id=eval_0192f3a4b5c9f1e2d3c4b5a
      bitbudget export measurements --projection down --b-q 2 | head
    """
    if name is None:
        _list(server, as_json)
        return
    if as_json and output is None:
        raise CliError("--json tells what was written, and stdout is taken by the export", cure="add --output FILE")
    filters = only | _assignments(where or ())
    path = f"/exports/{segment(name)}"
    with connect(server) as api:
        if output is None:
            _copy(api, path, format_, filters, sys.stdout.buffer)
            return
        nbytes, about = _write(api, path, format_, filters, output)
    if as_json:
        print_json({"path": str(output), "format": format_.value, "nbytes": nbytes, "schema": about})
    else:
        say(f"wrote {output} ({nbytes:,} bytes)")


def _list(server: str | None, as_json: bool) -> None:
    with connect(server) as api:
        items = api.get("/exports")["items"]
    if as_json:
        print_json(items)
        return
    rows = [(item["name"], item["description"], ", ".join(item["filters"])) for item in items]
    out().print(table(("name", "rows", "filters"), rows))


def _write(
    api: Api, path: str, format_: ExportFormat, filters: dict[str, Any], output: Path
) -> tuple[int, dict[str, Any]]:
    if not output.name:
        raise CliError(f"{output} names no file", cure="write --output FILE")
    partial = output.with_name(output.name + ".part")
    try:
        with partial.open("wb") as file:
            nbytes, about = _copy(api, path, format_, filters, file)
        if format_ == ExportFormat.CSV:
            beside = output.with_name(output.name + ".schema.json")
            beside.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        partial.replace(output)
    except OSError as error:
        raise CliError(f"cannot write {output}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return nbytes, about


def _copy(
    api: Api, path: str, format_: ExportFormat, filters: dict[str, Any], file: BinaryIO
) -> tuple[int, dict[str, Any]]:
    """How many bytes were written, and what the server says of them."""
    written = 0
    try:
        with api.stream(path, format=format_.value, **filters) as response:
            about: dict[str, Any] = json.loads(response.headers.get(_HEADER, "{}"))
            for chunk in response.iter_bytes():
                written += file.write(chunk)
            file.flush()
    except httpx.TransportError as error:
        raise Unreachable(api.url, "the export broke off before its end") from error
    return written, about


def _assignments(texts: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or key == "format":
            raise CliError(f"{text!r} is no filter", cure="write --where KEY=VALUE; `bitbudget export` lists the keys")
        found[key] = value
    return found
