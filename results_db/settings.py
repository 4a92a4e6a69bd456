"""Settings: what server, worker and CLI agree on, read from BITBUDGET_* variables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from results_db.errors import PathNotAllowed, PathNotUsable
from results_db.logs import LogFormat, LogLevel
from results_db.loopback import is_loopback
from results_db.queue.backoff import Backoff
from results_db.setting_docs import about


class Settings(BaseSettings):
    """One process's settings; every field is an environment variable with the prefix ``BITBUDGET_``."""

    model_config = SettingsConfigDict(env_prefix="BITBUDGET_", extra="ignore", frozen=True, hide_input_in_errors=True)

    var_dir: Annotated[
        Path, about("folder of everything that is written: database, sockets, logs, artefacts", "/var/lib/bitbudget")
    ] = Path("var")
    database_url: Annotated[
        str,
        about(
            "SQLAlchemy URL: `sqlite:////path/file.db` or `postgresql+psycopg://user@host/name`",
            "postgresql+psycopg://bitbudget@host/bitbudget",
            default="SQLite in the var folder",
        ),
    ] = ""
    database_password_file: Annotated[
        Path | None,
        about("a file with the password that the URL leaves out: a container's secret, for example", "/run/secrets/db"),
    ] = None
    redis_url: Annotated[
        str,
        about(
            "a Redis of your own, 6.2 or newer; then `up` starts none",
            "redis://host:6379/0",
            default="a socket in the var folder",
        ),
    ] = ""
    model_roots: Annotated[
        tuple[Path, ...],
        NoDecode,
        about(
            "folders that model and text paths must resolve into, symlinks followed, separated as in `PATH`; `up` adds "
            "the checkout",
            "/models:/texts",
            default="working directory",
        ),
    ] = ()
    artefacts_url: Annotated[
        str,
        about(
            "where calibrations and packed models are kept: a folder, or a URL that fsspec knows "
            "([artefacts](#artefacts))",
            "s3://bucket/bitbudget",
            default="`artefacts` in the var folder",
        ),
    ] = ""
    hidden_ram_gb: Annotated[
        float,
        Field(ge=0),
        about(
            "hidden states of a calibration above so many are in mapped files in the var folder "
            "([calibration](#calibration))",
            "16",
            unit="GB (10⁹ bytes)",
        ),
    ] = 4.0
    keep_work_days: Annotated[
        float,
        Field(gt=0),
        about(
            "after so many a worker that starts removes unfinished work, and copies of remote artefacts, that nothing "
            "touched",
            "3",
            unit="days",
        ),
    ] = 14.0
    host: Annotated[str, about("address that the server listens on", "0.0.0.0")] = "127.0.0.1"  # noqa: S104 - an example
    port: Annotated[int, Field(ge=0, le=65535), about("its port; 0 takes a free one with `up`", "8080")] = 8000
    charts_dir: Annotated[
        Path,
        about(
            "folder of the page's chart library; it is built there when it is missing",
            "/opt/charts",
            default="`cache` in the var folder",
        ),
    ] = Path("var/cache")
    allowed_hosts: Annotated[
        tuple[str, ...],
        NoDecode,
        about(
            "names, besides loopback ones and `HOST`, that requests may carry as `Host`, separated by commas", "box.lan"
        ),
    ] = ()
    require_token: Annotated[
        bool,
        about(
            "ask every request for a token on loopback too, behind a reverse proxy for example; off loopback it is "
            "asked for anyway ([access](security.md))",
            "true",
        ),
    ] = False
    max_body_mb: Annotated[
        float, Field(gt=0, le=1000), about("largest body of a request", "32", unit="MB (10⁶ bytes)")
    ] = 8.0
    session_hours: Annotated[
        float, Field(gt=0, le=24 * 365), about("after so many the page asks for a token again", "1", unit="hours")
    ] = 12.0
    sql_seconds: Annotated[
        float, Field(gt=0, le=300), about("longest time that a query over HTTP may take", "10", unit="seconds")
    ] = 1.5
    device: Annotated[
        str, about("what the worker computes on: `cpu`, a part of a GPU's name, its UUID, or `cuda:0`", "RTX 3090")
    ] = "cpu"
    lease_s: Annotated[
        float, Field(gt=0), about("without a heartbeat for so long a worker counts as lost", "120", unit="seconds")
    ] = 45.0
    heartbeat_s: Annotated[
        float,
        Field(gt=0),
        about("time between heartbeats, and between updates of progress; `up` takes 2", "10", unit="seconds"),
    ] = 5.0
    retry_base_s: Annotated[
        float,
        Field(ge=0),
        about(
            "after its n-th failure a job waits a random time up to this · 2^(n−1) before it is tried again; only "
            "errors that may pass are retried, and the first loss of a worker is made good at once",
            "30",
            unit="seconds",
        ),
    ] = 5.0
    retry_cap_s: Annotated[float, Field(ge=0), about("the longest such wait", "3600", unit="seconds")] = 300.0
    log_format: Annotated[
        LogFormat,
        about("`json`: one object a line; `text`; `auto`: text on a terminal, JSON elsewhere ([logs](#logs))", "json"),
    ] = "auto"
    log_level: Annotated[
        LogLevel, about("the least level that is logged: `debug`, `info`, `warning`, `error`", "debug")
    ] = "info"

    @field_validator("model_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: Any) -> Any:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: Any) -> Any:
        return [part.strip().lower() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("artefacts_url")
    @classmethod
    def _check_artefacts(cls, value: str) -> str:
        if "://" not in value:
            return str(Path(value).expanduser().absolute())
        parts = urlsplit(value)
        if parts.scheme == "file":
            return str(Path(unquote(parts.path)))
        # rows, logs and errors show URLs; the drivers take credentials from the environment and from their own files
        if parts.password or parts.query:
            raise ValueError("write no credentials into artefacts_url: its driver reads them from the environment")
        return value.rstrip("/")

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, value: str) -> str:
        try:
            known = make_url(value).get_backend_name() in ("sqlite", "postgresql")
        except (ArgumentError, ValueError):
            known = False
        if not known:
            raise ValueError("write sqlite:///path/to/file.db or postgresql+psycopg://user@host/database")
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis(cls, value: str) -> str:
        if not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("write redis://host:6379/0, rediss://… or unix:///path/to/socket")
        return value

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        var = Path(values.get("var_dir") or "var").absolute()
        filled = dict(values) | {"var_dir": var}
        filled["artefacts_url"] = values.get("artefacts_url") or str(var / "artefacts")
        filled["database_url"] = values.get("database_url") or f"sqlite:///{var / 'bitbudget.db'}"
        if values.get("database_password_file"):
            filled["database_url"] = _with_password(filled["database_url"], Path(values["database_password_file"]))
        filled["charts_dir"] = Path(values.get("charts_dir") or var / "cache").absolute()
        filled["redis_url"] = values.get("redis_url") or f"unix://{var / 'redis.sock'}"
        filled["model_roots"] = values.get("model_roots") or [Path.cwd()]
        return filled

    @model_validator(mode="after")
    def _check_lease(self) -> Settings:
        if self.heartbeat_s >= self.lease_s:
            raise ValueError(
                f"heartbeat_s = {self.heartbeat_s} must be shorter than lease_s = {self.lease_s}: "
                "a live worker would count as lost"
            )
        return self

    @property
    def needs_token(self) -> bool:
        """Whether every request needs a token: the server listens off loopback, or it is told to ask."""
        return self.require_token or not is_loopback(self.host)

    @property
    def backoff(self) -> Backoff:
        """The waits between attempts."""
        return Backoff(self.retry_base_s, self.retry_cap_s)

    @property
    def roots(self) -> tuple[Path, ...]:
        """``model_roots``, absolute, symlinks resolved."""
        return tuple(root.resolve() for root in self.model_roots)

    def resolve_path(self, path: str | Path) -> Path:
        """The absolute path that ``path`` names, symlinks resolved; it need not exist.

        Raises:
            PathNotAllowed: it lies outside every model root.
            PathNotUsable: it cannot be looked up at all.
        """
        return self._inside(path, self.roots)

    def resolve_folder(self, path: str | Path, *, deep: bool = False, also: Iterable[Path] = ()) -> Path:
        """As ``resolve_path``, for a folder whose files are all read: no link in it may lead out either.

        Args:
            deep: the files in its folders are read too, and those where links to folders lead.
            also: folders beside the model roots, absolute and without symlinks.

        Raises:
            PathNotAllowed, PathNotUsable: as ``resolve_path``; also where a file is none that can be read to an end.
        """
        roots = (*self.roots, *also)
        folder = self._inside(path, roots)
        waiting = [folder] if folder.is_dir() else []
        seen: set[Path] = set()
        while waiting:
            here = waiting.pop()
            if here in seen:  # links may lead in circles
                continue
            seen.add(here)
            try:
                files = sorted(here.iterdir())
            except OSError as error:
                raise PathNotUsable(str(here), error.strerror) from error
            for file in files:
                target = self._inside(file, roots) if file.is_symlink() else file
                if target.is_dir():
                    waiting.extend([target] if deep else [])
                elif target.exists() and not target.is_file():
                    raise PathNotUsable(str(file), "a pipe, a socket or a device: its reader might wait for ever")
        return folder

    @staticmethod
    def _inside(path: str | Path, roots: Sequence[Path]) -> Path:
        try:
            resolved = Path(path).expanduser().resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise PathNotUsable(str(path), getattr(error, "strerror", None) or error) from error
        if not any(resolved.is_relative_to(root) for root in roots):
            raise PathNotAllowed(str(path), [str(root) for root in roots])
        try:
            resolved.exists()
        except OSError as error:
            raise PathNotUsable(str(path), error.strerror) from error
        return resolved


def _with_password(url: str, file: Path) -> str:
    """``url`` with the password in ``file``; a password of its own stays.

    Raises:
        ValueError: the file cannot be read or is empty, or the database is a file, which has no password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return url  # refused with the other malformed ones
    if parsed.get_backend_name() == "sqlite":
        raise ValueError("database_password_file is for PostgreSQL: set database_url, or leave the file out")
    if parsed.password:
        return url
    try:
        password = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"database_password_file {file} cannot be read: {error}") from error
    if not password:
        raise ValueError(f"database_password_file {file} is empty")
    return parsed.set(password=password).render_as_string(hide_password=False)
