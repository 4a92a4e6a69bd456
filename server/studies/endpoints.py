"""/api/v1/studies."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import yaml
from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from sqlalchemy import select
from starlette.responses import Response

from results_db import Database
from results_db.states import StudyState
from results_db.tables import Study
from server.kit.answers import Answer, accepted
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageQuery, paginate
from server.kit.problem import Problem, invalid, validation_problem
from server.kit.rows import filtered, get_row
from server.kit.sse import AfterEvent, Topic, event_stream
from server.kit.units import AppDatabase, AppSettings, ReadSession, WriteSession
from server.studies.schemas import StudyConfig, StudyDetail, StudyPage, StudyRequest, StudyRow
from server.studies.service import cancel_study, check_study, describe_study, ended_study, start_study

router = APIRouter(prefix="/studies", tags=["studies"], route_class=IdempotentRoute)

_YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})
_MAX_BYTES = 1_000_000


async def _config(request: Request) -> StudyConfig:
    """The config in the body, as JSON or as YAML."""
    body = await request.body()
    if len(body) > _MAX_BYTES:
        raise Problem(413, "too-large", f"a study's config has at most {_MAX_BYTES:,} bytes")
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    try:
        if media_type in _YAML_TYPES:
            return StudyConfig.model_validate(_mapping(body))
        if media_type and media_type != "application/json":
            raise Problem(
                415,
                "unsupported-media-type",
                f"{media_type} is not read here: send application/json or application/yaml",
            )
        return StudyRequest.model_validate_json(body).config
    except ValidationError as error:
        raise validation_problem(_without_section(error.errors())) from error


def _mapping(body: bytes) -> dict[str, Any]:
    try:
        value = yaml.safe_load(body)
    except Exception as error:  # PyYAML's constructors also raise ValueError, KeyError, RecursionError, …
        raise Problem(422, "invalid-yaml", f"the body is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise invalid("", "the body must be a mapping: a study's config")
    return value


def _without_section(errors: Any) -> list[Any]:
    """Fields as the YAML has them: without the ``config`` that JSON puts around."""
    return [dict(e) | {"loc": e["loc"][1:] if e["loc"][:1] == ("config",) else e["loc"]} for e in errors]


@router.post(
    "",
    status_code=202,
    summary="Start a study: JSON {config}, or the config itself as YAML",
    responses={202: {"model": StudyDetail}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": StudyRequest.model_json_schema()},
                "application/yaml": {"schema": {"type": "object"}},
            },
        }
    },
)
def create_study(
    config: Annotated[StudyConfig, Depends(_config)], settings: AppSettings, session: WriteSession
) -> Response:
    # looking at the model may read many GB: before the transaction takes any lock
    checked, inspected = check_study(config, settings)
    study = start_study(session, checked, inspected)
    return accepted(describe_study(session, study), f"/api/v1/studies/{study.id}")


@router.get("", summary="Studies, newest first", responses={200: {"model": StudyPage}})
def list_studies(
    session: ReadSession,
    page: PageQuery,
    name: str | None = None,
    model_id: str | None = None,
    state: StudyState | None = None,
) -> Response:
    filters = {Study.name: name, Study.model_id: model_id, Study.state: state and state.value}
    return Answer(paginate(session, filtered(select(Study), filters), Study.id, page))


@router.get("/{study_id}", summary="One study, with jobs, gates, headline", responses={200: {"model": StudyDetail}})
def get_study(study_id: str, session: ReadSession) -> Response:
    return Answer(describe_study(session, get_row(session, Study, study_id)))


@router.post("/{study_id}/cancel", summary="Cancel every job that has not ended", responses={200: {"model": StudyRow}})
def cancel(study_id: str, session: WriteSession) -> Response:
    return Answer(describe_study(session, cancel_study(session, study_id)))


@router.get("/{study_id}/events", summary="Events of the study's jobs (SSE), from the first to `end`")
def follow_study(study_id: str, database: AppDatabase, after: AfterEvent) -> Response:
    with database.read() as session:
        get_row(session, Study, study_id)
    return event_stream(database, Topic(study_id=study_id, ended=partial(_ended, database, study_id)), after)


def _ended(database: Database, study_id: str) -> dict[str, Any] | None:
    with database.read() as session:
        return ended_study(session, study_id)
