"""AllocationProblem: the matrices, the menu of configs, and what each choice costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, NonFiniteValues
from compress_core.matrix import MatrixKey, MatrixSpec


@dataclass(frozen=True, slots=True)
class Cell:
    """What one config costs one matrix."""

    #: ε ≥ 0, calibration-weighted error (or whatever the weights a_i are per unit of)
    error: float
    #: bytes from the serialiser
    nbytes: int


@dataclass(frozen=True, eq=False)
class AllocationProblem:
    """min Σ_i a_i·ε_i(c_i) subject to Σ_i bytes_i(c_i) ≤ B (DESIGN §6).

    Column j of the tables is the menu's config j. A matrix that is too small for its rank takes the config with
    the rank cut to min(out, in) (``config_of``).

    Raises:
        ConfigError: tables, weights and names do not fit together.
        NonFiniteValues: a weight is NaN, infinite or negative; an error is NaN or negative.
    """

    specs: tuple[MatrixSpec, ...]
    menu: tuple[CompressionConfig, ...]
    #: (n, k) ε, +inf where the config is not available for the matrix
    errors: NDArray[np.float64]
    #: (n, k) int64, 0 where not available
    nbytes: NDArray[np.int64]
    #: (n,) a_i in nats of KL per unit of ε, or (n, k) where a cell's class has its own; all 1 minimises plain error
    weights: NDArray[np.float64]
    #: stored bytes that no choice changes: embeddings, head, norms, biases, file headers
    fixed_bytes: int = 0
    #: bytes of the matrices before compression; None: 2 a weight (bf16)
    original_matrix_bytes: int | None = None

    def __post_init__(self) -> None:
        shape = (len(self.specs), len(self.menu))
        if not shape[0] or not shape[1]:
            raise ConfigError("an allocation needs at least one matrix and one config")
        if self.errors.shape != shape or self.nbytes.shape != shape or self.weights.shape not in (shape[:1], shape):
            raise ConfigError(
                f"{shape[0]} matrices and {shape[1]} configs need tables of that shape, not errors "
                f"{self.errors.shape}, nbytes {self.nbytes.shape}, weights {self.weights.shape}"
            )
        _refuse_repeats("matrix", [str(s.key) for s in self.specs])
        _refuse_repeats("config", [c.config_hash for c in self.menu])
        for spec, row in zip(self.specs, self.weights.reshape(shape[0], -1), strict=True):
            bad = row[~(np.isfinite(row) & (row >= 0))]
            if bad.size:
                raise NonFiniteValues(f"the weight of matrix {spec.key} is {bad[0]}: it must be finite and 0 or more")
        wrong = np.isnan(self.errors) | (self.errors < 0)
        if wrong.any():
            i, j = (int(x) for x in np.argwhere(wrong)[0])
            raise NonFiniteValues(f"the error of matrix {self.specs[i].key} at {self.menu[j]} is {self.errors[i, j]}")

    @classmethod
    def from_cells(
        cls,
        specs: Sequence[MatrixSpec],
        menu: Sequence[CompressionConfig],
        cells: Mapping[tuple[MatrixKey, str], Cell],
        *,
        weights: Mapping[MatrixKey, float] | None = None,
        fixed_bytes: int = 0,
        original_matrix_bytes: int | None = None,
    ) -> Self:
        """Build the tables from measured or fitted cells, keyed by (matrix, config_hash).

        A matrix's cell of a config is looked up under the hash of the config *as clamped to the matrix*. A missing
        cell is not available. ``weights`` None means 1 for every matrix.

        Raises:
            ConfigError: ``weights`` lacks a matrix.
        """
        errors = np.full((len(specs), len(menu)), np.inf)
        nbytes = np.zeros((len(specs), len(menu)), dtype=np.int64)
        for i, spec in enumerate(specs):
            for j, config in enumerate(menu):
                cell = cells.get((spec.key, config.clamped(spec.out_features, spec.in_features).config_hash))
                if cell is not None:
                    errors[i, j], nbytes[i, j] = cell.error, cell.nbytes
        a = np.ones(len(specs))
        if weights is not None:
            for i, spec in enumerate(specs):
                if spec.key not in weights:
                    raise ConfigError(f"no sensitivity for matrix {spec.key}: measure it, or allocate without weights")
                a[i] = weights[spec.key]
        return cls(tuple(specs), tuple(menu), errors, nbytes, a, fixed_bytes, original_matrix_bytes)

    @property
    def n_weights(self) -> int:
        return sum(s.n_weights for s in self.specs)

    @property
    def original_bytes(self) -> int:
        """Bytes of the matrices before compression."""
        return 2 * self.n_weights if self.original_matrix_bytes is None else self.original_matrix_bytes

    @property
    def objective_table(self) -> NDArray[np.float64]:
        """(n, k) a_ij·ε_ij; inf stays inf where a_ij = 0."""
        finite = np.isfinite(self.errors)
        weights = self.weights.reshape(len(self.specs), -1)
        return np.where(finite, weights * np.where(finite, self.errors, 0.0), np.inf)

    @property
    def smallest_bytes(self) -> int | None:
        """Bytes of the smallest allocation; None where some matrix has no available config."""
        available = np.isfinite(self.errors)
        if not available.any(axis=1).all():
            return None
        return int(np.where(available, self.nbytes, np.iinfo(np.int64).max).min(axis=1).sum())

    def config_of(self, row: int, column: int) -> CompressionConfig:
        """The menu's config as this matrix takes it: rank clamped."""
        spec = self.specs[row]
        return self.menu[column].clamped(spec.out_features, spec.in_features)

    def column_of(self, config: CompressionConfig) -> int:
        """The menu's column of a config.

        Raises:
            ConfigError: the menu does not have it.
        """
        for j, candidate in enumerate(self.menu):
            if candidate.config_hash == config.config_hash:
                return j
        raise ConfigError(f"the menu has no config {config}: it has {', '.join(map(str, self.menu))}")


def _refuse_repeats(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{what} {name} appears twice")
        seen.add(name)
