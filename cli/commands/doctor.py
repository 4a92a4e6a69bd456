"""`bitbudget doctor`: what is wrong with this installation, and what helps."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.text import Text

from cli.doctor import Finding, Level, examine
from cli.errors import ExitCode
from cli.options import JsonOption, settings
from cli.output import out, print_json

_STYLE = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def doctor(as_json: JsonOption = False) -> None:
    """Look at settings, packages, disks, database, Redis, device and stack. Changes nothing.

    Each line is ok, warn (it works, and will be trouble) or fail (it does not work), with what helps. Exit code 1 where
    something fails.

    \b
    Examples:
      bitbudget doctor
      bitbudget doctor --json
    """
    findings = []
    for finding in examine(settings()):
        findings.append(finding)
        if not as_json:
            out().print(_line(finding))
    failed = any(finding.level is Level.FAIL for finding in findings)
    if as_json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    raise typer.Exit(ExitCode.FAILED if failed else ExitCode.OK)


def _line(finding: Finding) -> Text:
    text = Text.assemble((f"{finding.level:<4}", _STYLE[finding.level]), f"  {finding.about:<16}{finding.detail}")
    if finding.cure:
        text.append(f"\n{'':22}→ {finding.cure}", style="bold")
    return text
