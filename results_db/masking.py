"""Take secrets out of text: passwords in URLs, tokens, and what settings hold. For logs, problems, tracebacks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import unquote, unquote_plus, urlsplit

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

#: what stands where a secret was
MASK = "***"

#: names of query fields, of conninfo keys and of the environment that hold a secret, however they begin (PGPASSWORD)
_NAMES = (
    r"[\w-]*(?:passw(?:or)?d|pwd|secret|signature|credential"
    r"|(?:api|access|account|private|secret)[_-]?key|(?:api|auth|access|hub|refresh|security|session)[_-]?token)"
    r"|(?:(?:hf|bitbudget)[_-])?token"
)
#: scheme://user:password@host; a password may hold a slash that nobody escaped, but host:port/path is none
_USER = re.compile(r"(?<=://)[^:/@]*:(?!\d{1,5}[/?])")
_WORD = re.compile(r"[^\s'\"]+")
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # ?password=…, password=… of a conninfo, "password": "…"
    (re.compile(rf"(?i)(?<![\w-])({_NAMES})(=|[\"']?:\s*[\"'])([^\s&\"',;)]+)"), rf"\1\2{MASK}"),
    (
        re.compile(
            r"(?i)(?<![\w-])((?:set-)?cookie|(?:proxy-)?authorization)([\"']?\s*[:=]\s*+[\"']?+)(?!bearer|basic)[^\r\n\"']+"
        ),
        rf"\1\2{MASK}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\1 {MASK}"),
    # our own tokens (results_db.tokens): the hint that lists show stays
    (re.compile(r"\b(bb_[A-Za-z0-9_-]{4})[A-Za-z0-9_-]{20,}"), rf"\1{MASK}"),
)
#: shorter ones would mask half of a log
_SHORTEST = 4

_known: set[str] = set()


def mask(text: str) -> str:
    """``text`` with ``***`` where a secret was: every remembered one, and whatever looks like one."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    if "://" in text:
        text = _WORD.sub(_mask_user, text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _mask_user(word: re.Match[str]) -> str:
    """A word without the password before its last @. In steps: one pattern for all looks at a long text many times."""
    text = word.group()
    at = text.rfind("@")
    user = _USER.search(text, 0, at) if at > 0 else None
    return text if user is None else f"{text[: user.end()]}{MASK}{text[at:]}"


def mask_url(url: str) -> str:
    """A URL as it may be shown: without its password, wherever that stands."""
    secrets = secrets_of(url)
    for secret in sorted(secrets, key=len, reverse=True):
        url = url.replace(secret, MASK)
    return mask(url)


def secrets_of(url: str) -> set[str]:
    """The passwords in a URL, as written and as meant."""
    try:
        parts = urlsplit(url)
        found = {parts.password, unquote(parts.password)} if parts.password else set()
    except ValueError:  # nothing connects with it
        return set()
    for field in parts.query.split("&"):
        name, _, value = field.partition("=")
        if re.fullmatch(_NAMES, unquote(name), re.IGNORECASE):
            found |= {value, unquote(value), unquote_plus(value)}
    # SQLAlchemy also takes a password that holds a slash; for Redis' URLs it is no judge
    with suppress(ArgumentError, ValueError):
        found |= {str(make_url(url).password or "")}
    return found - {""}


def remember_secrets(urls: Iterable[str]) -> None:
    """From now on ``mask`` replaces the passwords of these URLs wherever they appear, in whatever form.

    Every process calls it once with its settings' URLs. Passwords under 4 characters are left to the patterns.
    """
    _known.update(secret for url in urls for secret in secrets_of(url) if len(secret) >= _SHORTEST)
