"""/api/v1/evaluations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import EvaluateParams
from results_db.tables import Evaluation
from server.evaluations.schemas import Comparison, EvaluationPage, EvaluationRow
from server.evaluations.service import compare_evaluations, submit_evaluation
from server.jobs.schemas import JobRow, job_accepted
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageQuery, paginate
from server.kit.rows import filtered, get_row
from server.kit.units import AppSettings, ReadSession, WriteSession

router = APIRouter(prefix="/evaluations", tags=["evaluations"], route_class=IdempotentRoute)


@router.post("", status_code=202, summary="Measure a model on a text", responses={202: {"model": JobRow}})
def create_evaluation(params: EvaluateParams, settings: AppSettings, session: WriteSession) -> Response:
    return job_accepted(submit_evaluation(session, params, settings))


@router.get("", summary="Evaluations, newest first", responses={200: {"model": EvaluationPage}})
def list_evaluations(
    session: ReadSession,
    page: PageQuery,
    model_id: str | None = None,
    compression_id: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
) -> Response:
    filters = {
        Evaluation.model_id: model_id,
        Evaluation.compression_id: compression_id,
        Evaluation.dataset: dataset,
        Evaluation.split: split,
    }
    return Answer(paginate(session, filtered(select(Evaluation), filters), Evaluation.id, page))


@router.get("/compare", summary="b against a on the same windows", responses={200: {"model": Comparison}})
def compare_two(
    session: ReadSession,
    a: Annotated[str, Query(description="id of the reference evaluation")],
    b: Annotated[str, Query(description="id of the other one")],
) -> Response:
    return Answer(compare_evaluations(session, a, b))


@router.get("/{evaluation_id}", summary="One evaluation", responses={200: {"model": EvaluationRow}})
def get_evaluation(evaluation_id: str, session: ReadSession) -> Response:
    return Answer(get_row(session, Evaluation, evaluation_id))
