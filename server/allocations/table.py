"""The table that an allocation is chosen from: matrices × configs, with measured errors, bytes and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from compress_core.allocate import AllocationProblem, Cell, KLAnchor, Sensitivity, estimate_sensitivities
from compress_core.config import BASELINE_CODEBOOKS, CompressionConfig
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.nbytes import predicted_nbytes
from compress_core.version import NUMERICS_VERSION
from results_db.params import BudgetSpec
from results_db.queries.measured import measured_cells, measured_sensitivities
from results_db.tables import Model
from server.kit.checks import check_config
from server.kit.problem import invalid
from server.models.service import model_specs, original_matrix_bytes

Cells = dict[tuple[MatrixKey, str], Cell]


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """What the database knows of a model under a calibration."""

    specs: tuple[MatrixSpec, ...]
    cells: Cells
    #: every config measured, the baselines apart, by hash
    configs: Mapping[str, CompressionConfig]
    fixed_bytes: int
    original_matrix_bytes: int

    def problem(
        self,
        menu: Sequence[CompressionConfig],
        *,
        weights: Mapping[MatrixKey, float] | None,
        predict: bool = False,
    ) -> AllocationProblem:
        """The solver's table. ``predict`` fills cells that are not measured with their bytes and no error: for
        allocations that are given, not chosen by error."""
        cells = self._predicted(menu) | self.cells if predict else self.cells
        return AllocationProblem.from_cells(
            self.specs,
            menu,
            cells,
            weights=weights,
            fixed_bytes=self.fixed_bytes,
            original_matrix_bytes=self.original_matrix_bytes,
        )

    def _predicted(self, menu: Sequence[CompressionConfig]) -> Cells:
        cells = {}
        for spec in self.specs:
            for config in menu:
                fitted = config.clamped(spec.out_features, spec.in_features)
                nbytes = predicted_nbytes(fitted, spec.out_features, spec.in_features)
                cells[spec.key, fitted.config_hash] = Cell(0.0, nbytes)
        return cells


def load_measured(session: Session, model: Model, calibration_id: str | None) -> Measured:
    """Everything measured; nothing where there is no calibration.

    Raises:
        Problem: model-not-fetched.
    """
    rows = (
        []
        if calibration_id is None
        else measured_cells(
            session, model_id=model.id, calibration_id=calibration_id, numerics_version=NUMERICS_VERSION
        )
    )
    cells = {
        (MatrixKey(m.layer_idx, m.projection, m.expert_idx), m.config_hash): Cell(
            m.calibration_weighted_error, m.nbytes
        )
        for m in rows
    }
    configs = {m.config_hash: m.config for m in rows if m.codebook not in BASELINE_CODEBOOKS}
    return Measured(
        specs=model_specs(model),
        cells=cells,
        configs={hash_: CompressionConfig.from_dict(fields) for hash_, fields in configs.items()},
        fixed_bytes=model.fixed_bytes or 0,
        original_matrix_bytes=original_matrix_bytes(model),
    )


def load_sensitivities(session: Session, model_id: str, calibration_id: str) -> dict[MatrixKey, Sensitivity]:
    """a_i per matrix: anchors averaged in log, shrunk. Empty where none is measured."""
    rows = measured_sensitivities(
        session, model_id=model_id, calibration_id=calibration_id, numerics_version=NUMERICS_VERSION
    )
    if not rows:
        return {}
    return estimate_sensitivities(
        KLAnchor(MatrixKey(r.layer_idx, r.projection, r.expert_idx), r.anchor_error, r.kl, r.kl_se) for r in rows
    )


def uniform_bytes(config: CompressionConfig, specs: Sequence[MatrixSpec]) -> int:
    """Bytes of the matrices when each takes the config, ranks clamped."""
    return sum(
        predicted_nbytes(config.clamped(s.out_features, s.in_features), s.out_features, s.in_features) for s in specs
    )


def budget_bytes(budget: BudgetSpec, specs: Sequence[MatrixSpec], *, outside: int) -> int:
    """The budget in bytes of its scope; ``outside`` = stored bytes besides the matrices that the scope counts.

    Bits per weight and uniform configs speak of the matrices alone, so there ``outside`` is added.

    Raises:
        Problem: none or several of the budget's fields are given, or its config is not valid.
    """
    given: dict[str, Any] = {k: v for k, v in budget.model_dump().items() if v is not None}
    if len(given) != 1:
        raise invalid("budget", "give exactly one of bytes, gb, bits_per_weight, uniform")
    if budget.bytes is not None:
        return budget.bytes
    if budget.gb is not None:
        return round(budget.gb * 10**9)
    if budget.fraction is not None:
        raise invalid("budget.fraction", "a fraction is not served yet")
    if budget.bits_per_weight is not None:
        return int(budget.bits_per_weight * sum(s.n_weights for s in specs) / 8) + outside
    return uniform_bytes(check_config(budget.uniform or {}, "budget.uniform"), specs) + outside
