"""Evaluations as the API shows them."""

from __future__ import annotations

from pydantic import BaseModel

from results_db.tables import Evaluation
from server.kit.answers import page_model, row_model

EvaluationRow = row_model(Evaluation)
EvaluationPage = page_model(EvaluationRow)


class Comparison(BaseModel):
    """How the perplexity of b differs from that of a on the same windows; 95 % intervals, paired."""

    a: str
    b: str
    #: mean loss of b minus mean loss of a, nats a token
    nll_difference: float
    nll_difference_low: float
    nll_difference_high: float
    #: PPL_b / PPL_a − 1
    relative_ppl_change: float
    low: float
    high: float
    n_windows: int
    n_tokens: int
    #: "better", "worse" or "not distinguishable": b against a
    verdict: str
