"""The results page: sections that are measured, and so replaced, one by one."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import scipy

RESULTS = Path(__file__).parents[1] / "results" / "allocate-cpu.md"
TITLE = "# Exact allocation on the CPU"
#: the order of the page
HEADINGS = ("Speed", "A thousand instances", "Other ways to choose")


def section(heading: str, command: str, intro: str, lines: Sequence[str], outro: str = "") -> str:
    """A section with what it was measured on."""
    machine = (
        f"{date.today():%Y-%m-%d}; `{command}`; Python {platform.python_version()}, numpy {np.__version__}, scipy "
        f"{scipy.__version__}; {os.cpu_count()} cores ({platform.machine()}), shared with other work (load "
        f"{os.getloadavg()[0]:.0f})."
    )
    parts = [f"## {heading}", f"{machine} {intro}", "\n".join(lines), outro]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_sections(sections: Sequence[str], path: Path = RESULTS) -> None:
    """Replace these sections of the page; the others stay as they were measured.

    Raises:
        ValueError: a section that the page does not have.
    """
    text = path.read_text() if path.exists() else ""
    found = {part.split("\n", 1)[0].strip(): f"## {part.strip()}\n" for part in text.split("\n## ")[1:]}
    for new in sections:
        heading = new.removeprefix("## ").split("\n", 1)[0].strip()
        if heading not in HEADINGS:
            raise ValueError(f"the page has no section {heading!r}: it has {', '.join(HEADINGS)}")
        found[heading] = new
    kept = [found[heading] for heading in HEADINGS if heading in found]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([f"{TITLE}\n", *kept]))
