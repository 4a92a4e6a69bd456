"""All checks in the order in which things stand on each other."""

from __future__ import annotations

import os
from collections.abc import Iterator

from cli.doctor.database import look_at_database
from cli.doctor.device import look_at_device
from cli.doctor.disk import look_at_disks
from cli.doctor.finding import Finding, ok, warn
from cli.doctor.redis import look_at_redis
from cli.doctor.stack import look_at_stack
from cli.doctor.versions import look_at_versions
from results_db.setting_docs import unknown_sentences
from results_db.settings import Settings


def examine(settings: Settings) -> Iterator[Finding]:
    """Findings, each as soon as it is known."""
    yield from _look_at_settings()
    yield from look_at_versions()
    yield from look_at_disks(settings)
    yield from look_at_database(settings)
    yield from look_at_redis(settings)
    yield from look_at_device(settings)
    yield from look_at_stack(settings)


def _look_at_settings() -> Iterator[Finding]:
    unknown = unknown_sentences(Settings, os.environ)
    for sentence in unknown:
        yield warn("settings", sentence, "correct or unset the variable: it is without effect")
    if not unknown:
        yield ok("settings", "every BITBUDGET_ variable is known and valid")
