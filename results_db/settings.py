"""Settings: what server, worker and CLI agree on, read from BITBUDGET_* variables."""

from __future__ import annotations

import os
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


class Settings(BaseSettings):
    """One process's settings; every field is an environment variable with the prefix ``BITBUDGET_``."""

    model_config = SettingsConfigDict(env_prefix="BITBUDGET_", extra="ignore", frozen=True, hide_input_in_errors=True)

    #: folder of everything that bitbudget writes: database, sockets, calibrations, packed models
    var_dir: Path = Path("var")
    #: where calibrations and packed models are kept: a folder, file:// or a URL that fsspec knows (s3://bucket/prefix,
    #: gs://…); default: "artefacts" in var_dir
    artefacts_url: str = ""
    #: hidden states of a calibration above so many GB (10⁹ bytes) lie in mapped files in var_dir instead of in memory
    hidden_ram_gb: Annotated[float, Field(ge=0)] = 4.0
    #: days after which a worker that starts removes untouched workspaces and copies of remote artefacts
    keep_work_days: Annotated[float, Field(gt=0)] = 14.0
    #: SQLAlchemy URL; default: a SQLite file in var_dir
    database_url: str = ""
    #: file with the password that database_url leaves out, such as a secret that a container is given
    database_password_file: Path | None = None
    #: Redis URL; default: a Unix socket in var_dir
    redis_url: str = ""
    #: folders that model and text paths must resolve into, symlinks followed; separated as in PATH. Default: the
    #: working directory
    model_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    #: folder of the page's chart library, built where it is missing; default: "cache" in var_dir
    charts_dir: Path = Path("var/cache")
    #: Host names that requests may carry besides loopback names and ``host``; separated by commas
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    #: ask every request for a token on loopback too: for a server behind a reverse proxy, or on a shared machine
    require_token: bool = False
    #: megabytes (10⁶ bytes) that a request's body may have
    max_body_mb: Annotated[float, Field(gt=0, le=1000)] = 8.0
    #: hours after which the page asks for a token again
    session_hours: Annotated[float, Field(gt=0, le=24 * 365)] = 12.0
    #: seconds that a query over HTTP may take; it is ended a fraction of a second later
    sql_seconds: Annotated[float, Field(gt=0, le=300)] = 1.5
    #: "cpu", or a GPU's name or UUID
    device: str = "cpu"
    #: seconds without a heartbeat after which a worker counts as lost
    lease_s: Annotated[float, Field(gt=0)] = 45.0
    heartbeat_s: Annotated[float, Field(gt=0)] = 5.0
    #: seconds: after its n-th failure a job waits a random time up to retry_base_s · 2^(n−1), at most retry_cap_s, and
    #: is tried again. Only errors that may pass are retried; the first loss of a worker is made good at once
    retry_base_s: Annotated[float, Field(ge=0)] = 5.0
    retry_cap_s: Annotated[float, Field(ge=0)] = 300.0
    #: "json": one object a line; "text"; "auto": text on a terminal, JSON elsewhere
    log_format: LogFormat = "auto"
    #: the least level that is logged
    log_level: LogLevel = "info"

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
        try:
            resolved = Path(path).expanduser().resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise PathNotUsable(str(path), getattr(error, "strerror", None) or error) from error
        if not any(resolved.is_relative_to(root) for root in self.roots):
            raise PathNotAllowed(str(path), [str(root) for root in self.roots])
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
