"""/api/v1/evaluations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import EvaluateParams
from results_db.tables import Evaluation
from server.evaluations.schemas import Comparison, EvaluationPage, EvaluationRow
from server.evaluations.service import compare_evaluations, submit_evaluation
from server.jobs.schemas import JobRow, job_accepted
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.priority import SubmitSession
from server.kit.rows import filtered, get_row
from server.kit.units import AppSettings, ReadSession

router = APIRouter(prefix="/evaluations", tags=["evaluations"], route_class=IdempotentRoute)

Page = Annotated[PageRequest, Depends(listing(Evaluation, "created_at", "task", "dataset", "split", "value", "nll"))]


@router.post("", status_code=202, summary="Measure a model on a text", responses={202: {"model": JobRow}})
def create_evaluation(params: EvaluateParams, settings: AppSettings, session: SubmitSession) -> Response:
    """A job; an evaluation of the same model on the same tokens is reused."""
    return job_accepted(submit_evaluation(session, params, settings))


@router.get("", summary="Evaluations, newest first", responses={200: {"model": EvaluationPage}})
def list_evaluations(
    session: ReadSession,
    page: Page,
    model_id: str | None = None,
    compression_id: str | None = None,
    job_id: str | None = None,
    task: str | None = None,
    metric: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
) -> Response:
    """``compression_id`` null is the original model. Its windows are in ``GET /exports/evaluation_items``."""
    filters = {
        Evaluation.model_id: model_id,
        Evaluation.job_id: job_id,
        Evaluation.task: task,
        Evaluation.metric: metric,
        Evaluation.compression_id: compression_id,
        Evaluation.dataset: dataset,
        Evaluation.split: split,
    }
    return Answer(paginate(session, filtered(select(Evaluation), filters), page))


@router.get("/compare", summary="b against a on the same windows", responses={200: {"model": Comparison}})
def compare_two(
    session: ReadSession,
    a: Annotated[str, Query(description="id of the reference evaluation")],
    b: Annotated[str, Query(description="id of the other one")],
) -> Response:
    """The difference window by window, with its interval: far narrower than two separate ones."""
    return Answer(compare_evaluations(session, a, b))


@router.get("/{evaluation_id}", summary="One evaluation", responses={200: {"model": EvaluationRow}})
def get_evaluation(evaluation_id: str, session: ReadSession) -> Response:
    """The metric with its 95 % interval over windows."""
    return Answer(get_row(session, Evaluation, evaluation_id))
