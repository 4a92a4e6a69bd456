"""What an objective weighs errors with: the sensitivities of its method, one a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from compress_core.allocate import Sensitivity, class_sensitivities, estimate_sensitivities
from compress_core.allocate.anchor_row import anchor_of
from compress_core.config import CompressionConfig
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.version import NUMERICS_VERSION
from results_db.params import Objective
from results_db.queries.measured import measured_sensitivities, sensitivity_estimates
from results_db.tables import Allocation
from server.allocations.table import Metric
from server.kit.problem import Problem
from server.kit.rows import get_row

#: what weighs the error of an objective; the objective "error" weighs nothing
METHODS: dict[Objective, str] = {
    "kl": "kl_anchor",
    "higgs": "higgs",
    "fisher_diagonal": "fisher_diagonal",
    "fisher_output": "fisher_output",
    "reanchored": "reanchored",
}


@dataclass(frozen=True, eq=False, slots=True)
class Weights:
    """a_i of one method: of every matrix as a whole, and for configs without and with a low-rank part.

    Empty where nothing is measured.
    """

    method: str
    by_matrix: Mapping[MatrixKey, float]
    rank0: Mapping[MatrixKey, float]
    low_rank: Mapping[MatrixKey, float]
    #: of the text that they were measured on
    token_hash: str | None = None
    #: that concluded them; None where they are computed here from anchors
    job_id: str | None = None

    @property
    def told(self) -> dict[str, Any]:
        """For an allocation's details."""
        return {"method": self.method, "token_hash": self.token_hash, "job_id": self.job_id}

    def of(self, matrix: MatrixKey, config: CompressionConfig) -> float | None:
        """a_i of a matrix at a config; None where it is not measured."""
        return (self.low_rank if config.rank else self.rank0).get(matrix)

    def table(self, specs: Sequence[MatrixSpec], menu: Sequence[CompressionConfig]) -> NDArray[np.float64]:
        """(n, k) a_ij.

        Raises:
            Problem: sensitivity-missing.
        """
        self.require(specs)
        rank0, low_rank = (np.array([found[spec.key] for spec in specs]) for found in (self.rank0, self.low_rank))
        has_rank = np.array([config.rank > 0 for config in menu])
        return np.where(has_rank, low_rank[:, None], rank0[:, None])

    def require(self, specs: Sequence[MatrixSpec]) -> None:
        """Every matrix has one.

        Raises:
            Problem: sensitivity-missing; the message says which job measures them.
        """
        missing = [str(spec.key) for spec in specs if spec.key not in self.by_matrix]
        if missing:
            raise Problem(
                409,
                "sensitivity-missing",
                f"matrix {missing[0]} has no sensitivity by method {self.method} ({len(missing)} of {len(specs)} have "
                f"none): {_CURES.get(self.method, _CURE.format(self.method))}, or take objective error",
                method=self.method,
            )


_CURE = 'POST /api/v1/sensitivities with "methods": ["{}"] first'
_CURES = {
    "kl_anchor": "POST /api/v1/sensitivities first",
    "reanchored": (
        'POST /api/v1/sensitivities with "methods": ["reanchored"] and the allocation to measure around as '
        "incumbent_allocation_id first"
    ),
}


def load_sensitivities(session: Session, model_id: str, calibration_id: str) -> Mapping[MatrixKey, Sensitivity]:
    """a_i per matrix by KL anchors, with its interval. Empty where none is measured."""
    rows = sensitivity_estimates(session, **_where(model_id, calibration_id, "kl_anchor"))
    if rows:
        return {s.matrix: s for s in (_sensitivity(row) for row in rows if row.applies_to == "all")}
    anchors = measured_sensitivities(session, **_where(model_id, calibration_id, "kl_anchor"))
    return estimate_sensitivities(map(anchor_of, anchors)) if anchors else {}


def load_weights(
    session: Session,
    model_id: str,
    calibration_id: str | None,
    objective: Objective,
    *,
    incumbent_allocation_id: str | None = None,
    token_hash: str | None = None,
    job_id: str | None = None,
) -> Weights:
    """What the newest job concluded by the objective's method; where no job has, the anchors of one text, combined.

    Args:
        incumbent_allocation_id: only what was measured at this allocation.
        token_hash, job_id: only what was concluded from these tokens, by this job.

    Raises:
        NotFound: there is no such incumbent.
    """
    method = METHODS[objective]
    nothing = Weights(method, {}, {}, {})
    if calibration_id is None:
        return nothing
    incumbent = None if incumbent_allocation_id is None else get_row(session, Allocation, incumbent_allocation_id)
    where = _where(model_id, calibration_id, method)
    rows = sensitivity_estimates(
        session,
        **where,
        incumbent_hash=None if incumbent is None else incumbent.content_hash,
        token_hash=token_hash,
        job_id=job_id,
    )
    found: dict[str, dict[MatrixKey, float]] = {"all": {}, "rank0": {}, "low_rank": {}}
    if rows:
        for row in rows:
            found[row.applies_to][MatrixKey(row.layer_idx, row.projection, row.expert_idx)] = row.value
        token_hash, job_id = rows[0].token_hash, rows[0].job_id
    elif method == "kl_anchor" and (anchors := measured_sensitivities(session, **where)):
        # measured before estimates were kept, or by a job that has not ended
        for cells, estimates in class_sensitivities(map(anchor_of, anchors)).items():
            found[cells] = {key: sensitivity.value for key, sensitivity in estimates.items()}
        token_hash, job_id = anchors[0].token_hash, None
    else:
        return nothing
    whole, rank0, low_rank = found.values()
    return Weights(method, whole, whole | rank0, whole | low_rank, token_hash, job_id)


def _where(model_id: str, calibration_id: str, method: str) -> dict[str, Any]:
    return {
        "model_id": model_id,
        "calibration_id": calibration_id,
        "numerics_version": NUMERICS_VERSION,
        "method": method,
    }


def metric_of(objective: Objective) -> Metric:
    """The error that an objective's sensitivities are per unit of."""
    return "normalized_mse" if objective == "higgs" else "calibration_weighted_error"


def _sensitivity(row: Any) -> Sensitivity:
    return Sensitivity(
        matrix=MatrixKey(row.layer_idx, row.projection, row.expert_idx),
        value=row.value,
        log_se=row.log_se,
        low=row.low,
        high=row.high,
        raw=row.raw,
        raw_log_se=row.raw_log_se,
        own_weight=row.own_weight,
        n_anchors=row.n_anchors,
        n_floored=row.n_floored,
    )
