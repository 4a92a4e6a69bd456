"""Own static files and the chart library, cached for good under names that change with their content."""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from results_db.settings import Settings
from web.bundle import ChartBundle

_STATIC = Path(__file__).parent / "static"
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_FOREVER = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
_NEVER = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@cache
def _files() -> dict[str, Path]:
    """Every static file by its path below static/; nothing else can be asked for."""
    return {path.relative_to(_STATIC).as_posix(): path for path in sorted(_STATIC.rglob("*")) if path.suffix in _TYPES}


@cache
def _version() -> str:
    """One hash of all static files: modules import each other by relative path, so they share it."""
    digest = hashlib.sha256()
    for name, path in _files().items():
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def _gzipped(name: str) -> bytes:
    return gzip.compress(_files()[name].read_bytes(), 9, mtime=0)


def asset_url(name: str) -> str:
    """The URL of a static file.

    Raises:
        KeyError: there is no such file.
    """
    if name not in _files():
        raise KeyError(f"no static file {name!r} in web/static")
    return f"/assets/{_version()}/{name}"


def _accepts_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("accept-encoding", "")


def _respond(request: Request, plain: bytes, packed: bytes, media_type: str) -> Response:
    headers = _FOREVER | {"Vary": "Accept-Encoding"}
    if _accepts_gzip(request):
        return Response(packed, media_type=media_type, headers=headers | {"Content-Encoding": "gzip"})
    return Response(plain, media_type=media_type, headers=headers)


def make_router(bundle: ChartBundle) -> APIRouter:
    """Routes of the static files and of the chart library."""
    router = APIRouter(include_in_schema=False)

    @router.get("/assets/charts.json")
    def charts() -> JSONResponse:
        """Where the chart library is, or that it is being built."""
        status = bundle.status()
        body = {
            "state": status.state,
            "src": f"/assets/charts/{status.file.name}" if status.file else None,
            "message": status.message,
        }
        return JSONResponse(body, status_code=202 if status.state == "building" else 200, headers=_NEVER)

    @router.get("/assets/charts/{name}")
    def chart_library(name: str, request: Request) -> Response:
        file = bundle.status().file
        if file is None or file.name != name:
            raise HTTPException(404, "no such chart library: ask /assets/charts.json for the present one")
        packed = file.with_name(file.name + ".gz")
        return _respond(request, file.read_bytes(), packed.read_bytes(), _TYPES[".js"])

    @router.get("/assets/{version}/{name:path}")
    def static_file(version: str, name: str, request: Request) -> Response:
        path = _files().get(name)
        if path is None or version != _version():
            raise HTTPException(404, "no such file: reload the page")
        return _respond(request, path.read_bytes(), _gzipped(name), _TYPES[path.suffix])

    @router.get("/favicon.ico")
    def favicon() -> Response:
        return Response(_files()["favicon.svg"].read_bytes(), media_type=_TYPES[".svg"], headers=_NEVER)

    return router


def mount(app: FastAPI, settings: Settings) -> ChartBundle:
    """Add the assets to the app; the chart library is built in the background from here on."""
    bundle = ChartBundle(settings.charts_dir)
    app.include_router(make_router(bundle))
    bundle.status()
    return bundle
