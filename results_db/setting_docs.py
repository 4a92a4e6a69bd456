"""What the settings are called, mean and hold: the guide's table, the lines at a start, and names that nobody knows."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from results_db.masking import mask_url

log = logging.getLogger(__name__)

PREFIX = "BITBUDGET_"

#: variables that are no field of Settings: name → where it is read
OTHERS: dict[str, str] = {
    "BITBUDGET_SERVER": "the server that the command line talks to; default: the running stack",
    "BITBUDGET_TOKEN": "the token that the command line sends; no other program of ours gets to see it",
    "BITBUDGET_TOKEN_FILE": "a file that holds it instead",
    "BITBUDGET_COPY_TO": "the target of `bitbudget db copy`, where its URL holds a password",
}
#: read by docker-compose.yml and by the tests alone
_ELSEWHERE = frozenset(
    f"{PREFIX}{name}"
    for name in (
        *("GPU", "GPU_UUID", "PUBLISHED_PORT", "WORKER_GRACE", "SECRETS"),
        *("SHARED", "SCHEDULES", "SCHEDULES_SEED", "TEST_CGROUP"),
    )
)


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One line of the table."""

    variable: str
    default: str
    #: empty = a number without one, or no number
    unit: str
    example: str
    meaning: str


def about(meaning: str, example: str, *, unit: str = "", default: str = "") -> Any:
    """What the guide says of a field; ``default`` where it is no constant."""
    return Field(description=meaning, examples=[example], json_schema_extra={"unit": unit, "default": default})


def setting_rows(settings: type[BaseSettings]) -> list[SettingRow]:
    """Every field, as it is documented.

    Raises:
        KeyError: a field has no ``about``; names it.
    """
    return [_row(name, field) for name, field in settings.model_fields.items()]


def markdown_table(settings: type[BaseSettings]) -> str:
    """The table of the guide."""
    lines = ["| variable | default | unit | example | meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| `{row.variable}` | {row.default} | {row.unit or '–'} | `{row.example}` | {row.meaning} |"
        for row in setting_rows(settings)
    ]
    lines += [f"| `{name}` | – | – | – | {meaning} |" for name, meaning in OTHERS.items()]
    return "\n".join(lines) + "\n"


def unknown_variables(settings: type[BaseSettings], environ: Mapping[str, str]) -> dict[str, str | None]:
    """``BITBUDGET_…`` variables that nobody reads, each with the nearest name that somebody does."""
    known = {f"{PREFIX}{name.upper()}" for name in settings.model_fields} | OTHERS.keys() | _ELSEWHERE
    unknown = sorted(name for name in environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    # without the prefix, which makes everything look alike
    ends = sorted(name.removeprefix(PREFIX) for name in known - _ELSEWHERE)
    near = {name: difflib.get_close_matches(name.upper().removeprefix(PREFIX), ends, 1, 0.6) for name in unknown}
    return {name: PREFIX + found[0] if found else None for name, found in near.items()}


def unknown_sentences(settings: type[BaseSettings], environ: Mapping[str, str]) -> list[str]:
    """The same in words, for logs and screens."""
    return [
        f"nobody reads {name}" + (f": did you mean {near}?" if near else ": the guide has the table of settings")
        for name, near in unknown_variables(settings, environ).items()
    ]


def shown_settings(settings: BaseSettings) -> dict[str, str]:
    """Every setting as it may be shown: without passwords."""
    return {name: mask_url(_shown(getattr(settings, name))) for name in type(settings).model_fields}


def tell_settings(settings: BaseSettings, environ: Mapping[str, str]) -> None:
    """Log what a process that starts goes by, and which variables nobody reads."""
    log.info("settings: %s", ", ".join(f"{name}={value}" for name, value in shown_settings(settings).items()))
    for sentence in unknown_sentences(type(settings), environ):
        log.warning("%s", sentence)


def _shown(value: Any) -> str:
    return os.pathsep.join(map(str, value)) if isinstance(value, tuple) else _plain(value)


def _row(name: str, field: FieldInfo) -> SettingRow:
    extra = field.json_schema_extra
    if not isinstance(extra, dict) or not field.description or not field.examples:
        raise KeyError(f"{name}: say what it is with about(…) of results_db.setting_docs")
    given = "" if field.default in (PydanticUndefined, None, "", ()) else f"`{_plain(field.default)}`"
    default = str(extra["default"]) or given or "–"
    return SettingRow(f"{PREFIX}{name.upper()}", default, str(extra["unit"]), str(field.examples[0]), field.description)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
