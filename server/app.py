"""The application; ``python -m server`` serves it."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, ClassVar

from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI
from starlette.types import ASGIApp

from results_db import Database
from results_db.logs import configure_logs
from results_db.masking import remember_secrets
from results_db.migrate import upgrade
from results_db.packages import own_version
from results_db.setting_docs import tell_settings
from results_db.settings import Settings
from server.allocations import endpoints as allocations
from server.calibrations import endpoints as calibrations
from server.compressions import endpoints as compressions
from server.evaluations import endpoints as evaluations
from server.exports import endpoints as exports
from server.fits import endpoints as fits
from server.gates import endpoints as gates
from server.health import endpoints as health
from server.health.metrics import Metrics
from server.jobs import bulk, priority
from server.jobs import endpoints as jobs
from server.kit.hosts import HostCheck
from server.kit.parameters import refuse_unknown_parameters
from server.kit.problem import add_handlers
from server.kit.sse import OpenStreams
from server.kit.tracing import Tracing
from server.kit.units import read_session
from server.loop import AdvanceLoop
from server.measurements import endpoints as measurements
from server.measurements import invalidation
from server.models import endpoints as models
from server.openapi.document import DESCRIPTION, complete
from server.plans import endpoints as plans
from server.probes import endpoints as probes
from server.problems import endpoints as problems
from server.queue import endpoints as queue
from server.relay import Relay
from server.security.body import BodyCheck
from server.security.guard import Guard
from server.security.headers import SecurityHeaders
from server.security.login import make_router as make_login
from server.sensitivities import endpoints as sensitivities
from server.sql import endpoints as sql
from server.sql.console import Console
from server.studies import endpoints as studies
from server.sweeps import endpoints as sweeps
from server.validations import endpoints as validations
from server.workers import endpoints as workers
from web.assets import mount as mount_assets
from web.pages import make_router as make_pages

log = logging.getLogger(__name__)

API = "/api/v1"
_DOMAINS = (
    models,
    calibrations,
    sensitivities,
    sweeps,
    measurements,
    invalidation,
    fits,
    allocations,
    compressions,
    evaluations,
    validations,
    studies,
    plans,
    probes,
    gates,
    jobs,
    bulk,
    priority,
    exports,
    queue,
    workers,
    sql,
    problems,
    health,
)


def create_app(settings: Settings | None = None, *, run_loop: bool = True, page: bool = True) -> FastAPI:
    """The service and its page. Nothing connects to the database or to Redis before the application starts.

    ``run_loop = False`` leaves the advance loop to the caller (tests turn it by hand), ``page = False`` serves the API
    alone.
    """
    if settings is None:
        # called bare by uvicorn: this process is the server, and its logs are ours
        settings = Settings()
        configure_logs(settings.log_format, settings.log_level)
        tell_settings(settings, os.environ)
    remember_secrets((settings.database_url, settings.redis_url))
    database = Database(settings.database_url)
    loop = AdvanceLoop(
        database, Relay(database, settings.redis_url), lease_s=settings.lease_s, backoff=settings.backoff
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await to_thread.run_sync(upgrade, database)
        if run_loop:
            await to_thread.run_sync(loop.start)
        yield
        await to_thread.run_sync(loop.stop)
        loop.relay.close()
        database.dispose()

    app = Service(
        title="bitbudget",
        version=own_version(),
        summary="Spend a memory budget where a language model feels it most.",
        description=DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's own pages load their scripts from elsewhere; web/ serves /docs
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.database = database
    app.state.loop = loop
    app.state.open_streams = OpenStreams()
    app.state.metrics = Metrics(database, loop, app.state.open_streams)
    app.state.sql_console = Console(database.url, settings.sql_seconds)
    add_handlers(app)
    # the last one added is the outermost: the host is checked before the caller, and both before any body is read
    app.add_middleware(BodyCheck, max_bytes=int(settings.max_body_mb * 1e6))
    app.add_middleware(Guard, database=database, settings=settings)
    app.add_middleware(HostCheck, allowed=(settings.host, *settings.allowed_hosts))
    app.add_middleware(Tracing, answered=app.state.metrics.answered, prefix=API)
    app.router.routes.extend(_api().routes)
    if page:
        app.include_router(make_login(database, settings))
        app.include_router(make_pages(settings, read_session))
        mount_assets(app, settings)
    return app


@cache
def _api() -> APIRouter:
    """The routes of the API. They hold nothing of an application, so all of a process share them: FastAPI works out
    what each of them takes at the first request, which takes a tenth of a second."""
    api = APIRouter(generate_unique_id_function=lambda route: route.name)
    for domain in _DOMAINS:
        api.include_router(domain.router, prefix=API, dependencies=[Depends(refuse_unknown_parameters)])
    api.include_router(health.router, include_in_schema=False)
    return api


class Service(FastAPI):
    """FastAPI whose every response, be it to an error that no middleware sees, carries the security headers."""

    _document: ClassVar[dict[str, Any] | None] = None

    def build_middleware_stack(self) -> ASGIApp:
        return SecurityHeaders(super().build_middleware_stack())

    def openapi(self) -> dict[str, Any]:
        """The document, made once a process, since all of its applications have the same routes."""
        if Service._document is None:
            Service._document = complete(super().openapi())
        return Service._document
