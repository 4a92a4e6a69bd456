"""Python and the installed packages, beside the versions that were tested together."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from cli.doctor.finding import Finding, fail, ok, warn
from cli.stack.plan import ROOT
from results_db.packages import installed

_NEEDED = (3, 11)
#: named in the line of versions, where they are installed
_SHOWN = ("sqlalchemy", "fastapi", "rq", "redis", "torch", "transformers")
_PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;]+)")
_MOST_NAMED = 6


def look_at_versions(constraints: Path = ROOT / "constraints.txt") -> Iterator[Finding]:
    """Python, then the packages."""
    python = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _NEEDED:
        yield fail("python", f"Python {python} is too old", "use Python 3.11 or newer")
    else:
        yield ok("python", f"Python {python}")
    shown = ", ".join(f"{name} {found}" for name in _SHOWN if (found := installed(name)))
    if not constraints.is_file():
        yield warn("packages", f"{shown}; {constraints} is not there to compare with", "run from the checkout")
        return
    other = [
        f"{name} {found} (tested: {wanted})"
        for name, wanted in pins(constraints).items()
        if (found := installed(name)) is not None and found.partition("+")[0] != wanted.partition("+")[0]
    ]
    if other:
        more = len(other) - _MOST_NAMED
        named = ", ".join(other[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        yield warn("packages", f"not the versions that were tested: {named}", "pip install -c constraints.txt -e .")
    else:
        yield ok("packages", f"as tested: {shown}")


def pins(constraints: Path) -> dict[str, str]:
    """Package → version of a constraints file."""
    matches = [_PIN.match(line) for line in constraints.read_text(encoding="utf-8").splitlines()]
    return {match[1]: match[2] for match in matches if match}
