"""The table that an allocation is chosen from: matrices × configs, with measured errors and bytes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core.allocate import AllocationProblem
from compress_core.config import BASELINE_CODEBOOKS, CompressionConfig
from compress_core.grid import fitting
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.nbytes import predicted_nbytes
from compress_core.version import NUMERICS_VERSION
from results_db.tables import Measurement, Model
from server.models.service import model_specs, original_matrix_bytes

#: the error that weights are per unit of, by the name of its column
Metric = Literal["calibration_weighted_error", "normalized_mse"]
#: rows and columns of a table, by shape of matrix
_Shape = tuple[int, int]


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """What the database knows of a model under a calibration: n matrices × m measured configs.

    Configs are those that matrices took, ranks clamped; +inf and 0 bytes stand where nothing is measured.
    """

    specs: tuple[MatrixSpec, ...]
    #: column of each measured config, by hash
    columns: dict[str, int]
    #: (n, m)
    error: NDArray[np.float64]
    #: (n, m)
    normalized_mse: NDArray[np.float64]
    #: (n, m) int64
    nbytes: NDArray[np.int64]
    #: every config measured, the baselines apart
    configs: tuple[CompressionConfig, ...]
    fixed_bytes: int
    original_matrix_bytes: int
    #: of the measurements
    ids: NDArray[np.int64]

    @property
    def keys(self) -> tuple[MatrixKey, ...]:
        return tuple(spec.key for spec in self.specs)

    def error_of(self, row: int, config_hash: str) -> float | None:
        """Calibration-weighted error of a matrix at a config as clamped to it; None where it is not measured."""
        column = self.columns.get(config_hash)
        if column is None or not np.isfinite(self.error[row, column]):
            return None
        return float(self.error[row, column])

    def known(self, menu: Sequence[CompressionConfig]) -> dict[str, Any]:
        """``{"until", "config_hashes"}``: the largest id of a measurement that could be chosen from, and the hashes of
        the configs that could be, ranks clamped. What says later whether a choice was made from a measurement."""
        shapes = {(spec.out_features, spec.in_features): spec for spec in self.specs}
        hashes = {hash_ for spec in shapes.values() for hash_ in fitting(spec, menu)}
        return {"until": int(self.ids.max(initial=0)), "config_hashes": sorted(hashes)}

    def problem(
        self,
        menu: Sequence[CompressionConfig],
        *,
        weights: NDArray[np.float64] | None = None,
        metric: Metric = "calibration_weighted_error",
        predict: bool = False,
    ) -> AllocationProblem:
        """The solver's table.

        Args:
            weights: (n, k) a_ij; None = 1 for every cell.
            predict: fill cells that are not measured with their bytes and no error: for allocations that are given, not
                chosen by error.
        """
        source = self.error if metric == "calibration_weighted_error" else self.normalized_mse
        errors = np.full((len(self.specs), len(menu)), np.inf)
        nbytes = np.zeros(errors.shape, dtype=np.int64)
        for shape, rows in self._rows_by_shape().items():
            for j, config in enumerate(menu):
                fitted = config.clamped(*shape)
                column = self.columns.get(fitted.config_hash)
                if column is not None:
                    errors[rows, j], nbytes[rows, j] = source[rows, column], self.nbytes[rows, column]
                if predict:
                    missing = rows[~np.isfinite(errors[rows, j])]
                    errors[missing, j], nbytes[missing, j] = 0.0, predicted_nbytes(fitted, *shape)
        return AllocationProblem(
            self.specs,
            tuple(menu),
            errors,
            nbytes,
            np.ones(len(self.specs)) if weights is None else weights,
            self.fixed_bytes,
            self.original_matrix_bytes,
        )

    def _rows_by_shape(self) -> dict[_Shape, NDArray[np.int64]]:
        rows: dict[_Shape, list[int]] = {}
        for row, spec in enumerate(self.specs):
            rows.setdefault((spec.out_features, spec.in_features), []).append(row)
        return {shape: np.array(found) for shape, found in rows.items()}


def load_measured(session: Session, model: Model, calibration_id: str | None) -> Measured:
    """Everything measured; nothing where there is no calibration.

    Only one numerics version counts: errors of two versions must not be mixed. Of a cell measured on two kinds of
    device the later row counts.

    Raises:
        Problem: model-not-fetched.
    """
    specs = model_specs(model)
    cells = [] if calibration_id is None else _cells(session, model.id, calibration_id)
    columns: dict[str, int] = {}
    rows = {(s.key.layer_idx, s.key.projection, s.key.expert_idx): row for row, s in enumerate(specs)}
    # the index of each cell, in the order of the rows: where one cell comes twice the later is written last
    where = np.array(
        [(rows[cell[:3]], columns.setdefault(cell[3], len(columns))) for cell in cells],
        dtype=np.int64,
    ).reshape(-1, 2)
    error = np.full((len(specs), len(columns)), np.inf)
    mse, nbytes = error.copy(), np.zeros(error.shape, dtype=np.int64)
    for table, position in ((error, 4), (mse, 5), (nbytes, 6)):
        table[where[:, 0], where[:, 1]] = [cell[position] for cell in cells]
    return Measured(
        specs=specs,
        columns=columns,
        error=error,
        normalized_mse=mse,
        nbytes=nbytes,
        configs=_configs(session, {cell[3]: cell[7] for cell in cells}.values()),
        fixed_bytes=model.fixed_bytes or 0,
        original_matrix_bytes=original_matrix_bytes(model),
        ids=np.array([cell[7] for cell in cells], dtype=np.int64),
    )


def _cells(session: Session, model_id: str, calibration_id: str) -> Sequence[Any]:
    # columns of the table, not objects: 15,000 cells are read in a tenth of the time
    c = Measurement.__table__.c
    query = (
        select(
            c.layer_idx,
            c.projection,
            c.expert_idx,
            c.config_hash,
            c.calibration_weighted_error,
            c.normalized_mse,
            c.nbytes,
            c.id,
        )
        .where(
            c.model_id == model_id,
            c.calibration_id == calibration_id,
            c.numerics_version == NUMERICS_VERSION,
        )
        .order_by(c.id)
    )
    return session.connection().execute(query).all()


def _configs(session: Session, cells: Collection[int]) -> tuple[CompressionConfig, ...]:
    """The configs of these measurements, in the order of a menu; those of baselines are left out."""
    query = select(Measurement.config).where(Measurement.id.in_(cells), Measurement.codebook.not_in(BASELINE_CODEBOOKS))
    configs = [CompressionConfig.from_dict(fields) for fields in session.scalars(query)]
    return tuple(sorted(configs, key=lambda c: (c.codebook, c.b_q, c.rank, c.config_hash)))
