"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How it is."""

    OK = "ok"
    WARN = "warn"  #: it works, and will be trouble
    FAIL = "fail"  #: it does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and what helps where it is not ok."""

    about: str
    level: Level
    detail: str
    cure: str | None = None


def ok(about: str, detail: str) -> Finding:
    return Finding(about, Level.OK, detail)


def warn(about: str, detail: str, cure: str) -> Finding:
    return Finding(about, Level.WARN, detail, cure)


def fail(about: str, detail: str, cure: str) -> Finding:
    return Finding(about, Level.FAIL, detail, cure)
