"""Templates: one Jinja environment, autoescaped, strict about names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from web import formatting
from web.assets import asset_url

_TEMPLATES = Path(__file__).parent / "templates"

#: what a state or verdict looks like: its tone (colour) and its icon; the word itself is always shown too
TONES: dict[str, tuple[str, str]] = {
    "waiting": ("quiet", "circle"),
    "queued": ("quiet", "clock"),
    "running": ("live", "spinner"),
    "paused": ("warn", "pause"),
    "succeeded": ("good", "check"),
    "failed": ("bad", "cross"),
    "dead": ("bad", "cross"),
    "lost": ("bad", "cross"),
    "cancelled": ("quiet", "slash"),
    "released": ("quiet", "slash"),
    "skipped": ("quiet", "skip"),
    "stopped": ("warn", "pause"),
    "GO": ("good", "check"),
    "NO-GO": ("bad", "cross"),
    "NOT DECIDABLE": ("warn", "question"),
    "NOT MEASURED": ("quiet", "circle"),
    "up": ("good", "check"),
    "down": ("quiet", "slash"),
}


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "number",
        "short",
        "percent",
        "count",
        "size",
        "duration",
        "between",
        "moment",
        "interval",
        "config_label",
    ):
        environment.filters[name] = getattr(formatting, name)
    environment.filters["pretty"] = _pretty
    environment.filters["tone"] = lambda word: TONES.get(word, ("quiet", "circle"))[0]
    environment.filters["icon"] = lambda word: TONES.get(word, ("quiet", "circle"))[1]
    environment.globals["asset"] = asset_url
    return environment


_ENVIRONMENT = _environment()


def render(template: str, **context: Any) -> str:
    """The template's HTML."""
    return _ENVIRONMENT.get_template(template).render(**context)


def page(template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """An HTML response; the server adds the headers that protect it (web/security.py)."""
    return HTMLResponse(render(template, **context), status_code=status, headers={"Cache-Control": "no-store"})
