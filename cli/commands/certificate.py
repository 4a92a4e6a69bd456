"""`bitbudget certificate` and `bitbudget verify`: the proof of an allocation, and its check without the solver."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from cli.errors import CliError, ExitCode
from cli.options import JsonOption, ServerOption, connect
from cli.output import out, print_json, say

_WEIGHTS = "*.safetensors"


def certificate(
    allocation: Annotated[str, typer.Argument(metavar="ID", help="An optimal allocation.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FOLDER", help="Name the files of the packed model too.", exists=True, file_okay=False
        ),
    ] = None,
    server: ServerOption = None,
) -> None:
    """Write the certificate of an allocation to stdout: all that anyone needs to check it.

    It holds the errors, weights and bytes that were chosen from, the choice, and the multipliers that bound every other
    one. With --weights it also holds the hashes of the packed model's files.

    \b
    Example:
      bitbudget certificate alloc_0192f3a4b5c9f1e2d3c4b5a > certificate.json
    """
    from compress_core.allocate.certificate_file import certificate_text
    from compress_core.allocate.verify import digest

    with connect(server) as api:
        document: dict[str, Any] = api.get(f"/allocations/{allocation}/certificate.json")
    if weights is not None:
        del document["digest"]
        document["files"] = _hashes(weights)
        document["digest"] = digest(document)
    sys.stdout.write(certificate_text(document))


def verify(
    file: Annotated[Path, typer.Argument(metavar="CERT.json", help="A certificate.", exists=True, dir_okay=False)],
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FOLDER", help="Check the packed model's files as well.", exists=True, file_okay=False
        ),
    ] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Enumerate again what the bound leaves open; it may take a while.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a certificate without a server, and without trusting the solver.

    Hashes, bytes, budget, constraints and objective are computed again, and so is a bound that no allocation can beat.
    Exit code 1: something is not as the certificate says, and which.

    \b
    Examples:
      bitbudget verify certificate.json
      bitbudget verify certificate.json --weights var/artefacts/compressions/cmp_1 --prove
    """
    from compress_core.allocate.certificate_file import check_constraints
    from compress_core.allocate.verify import verify as check

    document = _read(file)
    checks = check(document, weights=weights, prove=prove)
    if all(found.passed for found in checks):
        # who has bitbudget can also ask whether the table is what the constraints say
        checks.append(check_constraints(document))
    holds = all(found.passed for found in checks)
    if as_json:
        print_json({"holds": holds, "checks": [found._asdict() for found in checks]})
    else:
        console = out()
        for found in checks:
            mark = ("ok    ", "green") if found.passed else ("FAILED", "bold red")
            console.print(Text.assemble(mark, f"  {found.name}: {found.said}"))
        say("the certificate holds" if holds else "the certificate does not hold")
    raise typer.Exit(ExitCode.OK if holds else ExitCode.FAILED)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CliError(f"cannot read {path}: {error}", cure="bitbudget certificate ID > certificate.json") from error
    if not isinstance(document, dict):
        raise CliError(f"{path} holds no certificate", cure="bitbudget certificate ID > certificate.json")
    return document


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of every weight file of a packed model."""
    files = sorted(folder.rglob(_WEIGHTS))
    if not files:
        raise CliError(f"{folder} holds no {_WEIGHTS}", cure="name the folder of a packed model")
    hashes = {}
    for path in files:
        with path.open("rb") as stream:
            hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes
