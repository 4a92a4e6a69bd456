"""Routes of the page."""

# no postponed annotations here: FastAPI could not see the session dependency, which is local to make_router
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session

from results_db.errors import NotFound
from results_db.settings import Settings
from web.api_reference import api_groups, body_schemas
from web.figures import Figure
from web.queries.console import console_page
from web.queries.jobs import job_page
from web.queries.overview import overview
from web.queries.study import study_page
from web.render import page
from web.study_figures import COLUMNS, FIGURES, FOLDED, study_figure, study_figures

ReadSession = Callable[..., Session] | Callable[..., Iterator[Session]]


def make_router(settings: Settings, read_session: ReadSession) -> APIRouter:
    """The pages; ``read_session`` is a dependency that yields a session that only reads."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    Reading = Annotated[Session, Depends(read_session, scope="function")]

    @router.get("/")
    def first_page(session: Reading, request: Request) -> Response:
        return page("overview.html", overview=overview(session), base_url=_base_url(request))

    @router.get("/live")
    def first_page_live(session: Reading, request: Request) -> Response:
        return page("partials/overview_live.html", overview=overview(session), base_url=_base_url(request))

    @router.get("/studies/{study_id}")
    def study(study_id: str, session: Reading) -> Response:
        found = study_page(session, study_id)
        if found is None:
            return _not_found("study", study_id)
        figures = study_figures(session, found.study)
        columns = [[figures[name] for name in column] for column in COLUMNS]
        return page("study.html", page=found, columns=columns, folded=[figures[name] for name in FOLDED])

    @router.get("/studies/{study_id}/live")
    def study_live(study_id: str, session: Reading) -> Response:
        found = study_page(session, study_id)
        return _not_found("study", study_id) if found is None else page("partials/study_live.html", page=found)

    @router.get("/studies/{study_id}/figures/{name}.json")
    def figure_spec(study_id: str, name: str, session: Reading, request: Request) -> Response:
        figure = _figure(session, study_id, name)
        if figure is None:
            # whoever asks for JSON reads problems, not pages
            raise NotFound("figure", f"{study_id}/{name}")
        return _json({key: value for key, value in asdict(figure).items() if key != "table"}, request)

    @router.get("/studies/{study_id}/figures/{name}.html")
    def figure_table(study_id: str, name: str, session: Reading) -> Response:
        figure = _figure(session, study_id, name)
        if figure is None:
            return _not_found("figure", name)
        return page("partials/figure_table.html", figure=figure)

    @router.get("/jobs/{job_id}")
    def job(job_id: str, session: Reading) -> Response:
        found = job_page(session, job_id)
        return _not_found("job", job_id) if found is None else page("job.html", page=found)

    @router.get("/jobs/{job_id}/live")
    def job_live(job_id: str, session: Reading) -> Response:
        found = job_page(session, job_id)
        return _not_found("job", job_id) if found is None else page("partials/job_live.html", page=found)

    @router.get("/sql")
    def sql_console() -> Response:
        return page("sql.html", page=console_page())

    @router.get("/docs")
    def api_reference(request: Request) -> Response:
        document = request.app.openapi()
        groups = api_groups(document)
        description = document["info"].get("description", "")
        return page("api.html", description=description, groups=groups, schemas=body_schemas(document, groups))

    return router


def _figure(session: Session, study_id: str, name: str) -> Figure | None:
    return study_figure(session, study_id, name) if name in FIGURES else None


def _json(body: dict[str, Any], request: Request) -> Response:
    """JSON that the browser keeps and asks about: unchanged figures cost 304."""
    content = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)


def _not_found(noun: str, name: str) -> HTMLResponse:
    return page("not_found.html", status=404, noun=noun, name=name)


def _base_url(request: Request) -> str:
    """Where this page was asked for, for the command lines that it shows."""
    return str(request.base_url).rstrip("/")
