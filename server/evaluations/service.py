"""Ask a worker for an evaluation, and compare two that it made."""

from __future__ import annotations

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core.evaluate.interval import PairedComparison, compare
from results_db.params import EvaluateParams
from results_db.queue.submit import submit_job
from results_db.settings import Settings
from results_db.states import JobKind
from results_db.tables import Compression, Evaluation, EvaluationItem, Job, Model
from server.evaluations.schemas import Comparison
from server.kit.checks import check_text
from server.kit.problem import Problem, invalid
from server.kit.rows import get_row
from server.models.service import require_local


def submit_evaluation(session: Session, params: EvaluateParams, settings: Settings) -> Job:
    """An evaluate job."""
    # before the session's first statement, with which the write lock comes: texts may be large, their disks slow
    checked = params.model_copy(update={"text": check_text(params.text, settings, "text")})
    require_local(get_row(session, Model, params.model_id))
    if params.compression_id is not None:
        compression = get_row(session, Compression, params.compression_id)
        if compression.model_id != params.model_id:
            raise invalid("compression_id", f"{compression.id} is a compression of model {compression.model_id}")
    return submit_job(session, JobKind.EVALUATE, checked.model_dump(mode="json"))


def paired(session: Session, a: Evaluation, b: Evaluation) -> PairedComparison:
    """b against a, window by window.

    Raises:
        Problem: not-comparable: they were not measured on the same windows.
    """
    if a.token_hash != b.token_hash or a.n_items != b.n_items:
        raise Problem(
            422,
            "not-comparable",
            f"{a.id} and {b.id} were measured on different windows: compare equal texts and lengths",
        )
    rows_a, rows_b = _windows(session, a.id), _windows(session, b.id)
    if [row.item_idx for row in rows_a] != [row.item_idx for row in rows_b] or len(rows_a) < 2:
        raise Problem(
            422, "not-comparable", f"{a.id} and {b.id} do not have the same windows, or fewer than the two it takes"
        )
    nll_a, nll_b = (np.array([row.nll for row in rows], dtype=np.float64) for rows in (rows_a, rows_b))
    return compare(nll_a, nll_b, np.array([row.n_tokens for row in rows_a], dtype=np.int64))


def compare_evaluations(session: Session, a_id: str, b_id: str) -> Comparison:
    """The paired comparison as the API shows it."""
    a, b = get_row(session, Evaluation, a_id), get_row(session, Evaluation, b_id)
    found = paired(session, a, b)
    change = found.relative_change
    return Comparison(
        a=a_id,
        b=b_id,
        nll_difference=found.difference.estimate,
        nll_difference_low=found.difference.low,
        nll_difference_high=found.difference.high,
        relative_ppl_change=change.estimate,
        low=change.low,
        high=change.high,
        n_windows=change.n_windows,
        n_tokens=a.n_tokens,
        verdict="better" if change.high < 0 else "worse" if change.low > 0 else "not distinguishable",
    )


def _windows(session: Session, evaluation_id: str) -> list[EvaluationItem]:
    query = select(EvaluationItem).where(EvaluationItem.evaluation_id == evaluation_id)
    return list(session.scalars(query.order_by(EvaluationItem.item_idx)))
