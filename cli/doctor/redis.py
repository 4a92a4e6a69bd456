"""Redis: the doorbell. It may forget everything, but it must answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis

from cli.doctor.finding import Finding, fail, ok, warn
from cli.stack.plan import uses_embedded_redis
from cli.stack.record import running_stack
from results_db.masking import mask, mask_url
from results_db.settings import Settings

_OLDEST = (6, 2)
_TIMEOUT_S = 5.0


def look_at_redis(settings: Settings) -> Iterator[Finding]:
    """Whether it answers, how old it is, and what it may throw away."""
    url = settings.redis_url
    if uses_embedded_redis(settings):
        record = running_stack(settings.var_dir)
        if record is None:
            yield ok("redis", "the embedded one starts with `bitbudget up`")
            return
        url = record.redis_url
    shown = mask_url(url)
    client = redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
    try:
        info = client.info()
    except redis.RedisError as error:
        yield fail("redis", f"{shown} does not answer: {mask(str(error))}", "start it, and check BITBUDGET_REDIS_URL")
        return
    finally:
        client.close()
    yield from judge(shown, info)


def judge(shown: str, info: dict[str, Any]) -> Iterator[Finding]:
    """What its INFO tells."""
    version = str(info.get("redis_version", "0"))
    kept = "an append-only file" if info.get("aof_enabled") else "snapshots or nothing"
    detail = f"{shown} answers, version {version}, keeps {kept}"
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        yield fail("redis", f"{detail}: too old", "use Redis 6.2 or newer, or Valkey")
        return
    yield ok("redis", detail)
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if info.get("maxmemory") and policy != "noeviction":
        yield warn(
            "redis memory",
            f"its policy is {policy}: it may throw away messages, which are then sent again and again",
            "give it maxmemory-policy noeviction",
        )
    if info.get("loading"):
        yield warn("redis", "it is still loading its data", "wait a moment")
