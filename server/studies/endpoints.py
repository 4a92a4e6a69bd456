"""/api/v1/studies."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from sqlalchemy import select
from starlette.responses import Response

from results_db import Database
from results_db.states import StudyState
from results_db.tables import Study
from server.kit.answers import Answer, accepted
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.priority import SubmitSession
from server.kit.rows import NameContains, containing, filtered, get_row
from server.kit.sse import AfterEvent, Streams, Topic, event_stream
from server.kit.units import AppDatabase, AppSettings, ReadSession, WriteSession
from server.studies.body import openapi_body, read_study
from server.studies.recompute import config_to_recompute
from server.studies.schemas import StudyConfig, StudyDetail, StudyPage, StudyRequest
from server.studies.service import cancel_study, check_study, describe_study, ended_study, start_study

router = APIRouter(prefix="/studies", tags=["studies"], route_class=IdempotentRoute)

Page = Annotated[PageRequest, Depends(listing(Study, "created_at", "name", "state", "finished_at"))]


async def _config(request: Request) -> StudyConfig:
    """The config in the body, as JSON or as YAML."""
    return (await read_study(request, StudyRequest)).config


@router.post(
    "",
    status_code=202,
    summary="Start a study: JSON {config}, or the config itself as YAML",
    responses={202: {"model": StudyDetail}},
    openapi_extra=openapi_body(StudyRequest),
)
def create_study(
    config: Annotated[StudyConfig, Depends(_config)], settings: AppSettings, session: SubmitSession
) -> Response:
    """Every step becomes a job at once; those that need others wait. Follow it at ``…/events``."""
    # looking at the model may read many GB: before the transaction takes any lock
    checked, inspected = check_study(config, settings)
    study = start_study(session, checked, inspected)
    return accepted(describe_study(session, study), f"/api/v1/studies/{study.id}")


@router.get("", summary="Studies, newest first", responses={200: {"model": StudyPage}})
def list_studies(
    session: ReadSession,
    page: Page,
    name: str | None = None,
    name_contains: NameContains = None,
    model_id: str | None = None,
    state: StudyState | None = None,
) -> Response:
    """Each with its config as it was checked, and its headline once it has ended."""
    filters = {Study.name: name, Study.model_id: model_id, Study.state: state and state.value}
    query = containing(filtered(select(Study), filters), Study.name, name_contains)
    return Answer(paginate(session, query, page))


@router.get("/{study_id}", summary="One study, with jobs, gates, headline", responses={200: {"model": StudyDetail}})
def get_study(study_id: str, session: ReadSession) -> Response:
    """Everything that the study's page shows, in one answer."""
    return Answer(describe_study(session, get_row(session, Study, study_id)))


@router.post(
    "/{study_id}/cancel",
    summary="Cancel every job that has not ended",
    operation_id="cancel_study",
    responses={200: {"model": StudyDetail}},
)
def cancel(study_id: str, session: WriteSession) -> Response:
    """What runs is asked to stop, what waits does not start, what was measured stays."""
    return Answer(describe_study(session, cancel_study(session, study_id)))


@router.post(
    "/{study_id}/recompute",
    status_code=202,
    summary="Compute a study with stale results again, as a new study",
    operation_id="recompute_study",
    responses={202: {"model": StudyDetail}},
)
def recompute(study_id: str, database: AppDatabase, settings: AppSettings, session: SubmitSession) -> Response:
    """The same config under a new id: only cells that are missing are measured, only allocations that changed are
    compressed and evaluated. The old study keeps its rows and their marks."""
    with database.read() as reading:
        config = config_to_recompute(reading, study_id)
    checked, inspected = check_study(config, settings)
    study = start_study(session, checked, inspected)
    return accepted(describe_study(session, study), f"/api/v1/studies/{study.id}")


@router.get("/{study_id}/events", summary="Events of the study's jobs (SSE), from the first to `end`")
def follow_study(study_id: str, database: AppDatabase, streams: Streams, after: AfterEvent) -> Response:
    """``id`` is the event's: send it as ``Last-Event-ID`` to go on where a connection broke."""
    with database.read() as session:
        get_row(session, Study, study_id)
    topic = Topic(study_id=study_id, ended=partial(_ended, database, study_id))
    return event_stream(database, streams, topic, after)


def _ended(database: Database, study_id: str) -> dict[str, Any] | None:
    with database.read() as session:
        return ended_study(session, study_id)
