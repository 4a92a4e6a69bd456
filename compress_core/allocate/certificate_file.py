"""The certificate of an allocation as a file: everything that anyone needs to check it, and nothing of the solver."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.constrained import ConstrainedTable, constrained
from compress_core.allocate.constraints import Constraints
from compress_core.allocate.problem import AllocationProblem
from compress_core.allocate.set_bound import SetTable
from compress_core.allocate.solution import AllocationSolution
from compress_core.allocate.verify import PROBLEM, Check, digest
from compress_core.config import CompressionConfig
from compress_core.errors import CompressCoreError, ConfigError
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.version import NUMERICS_VERSION

KIND = "bitbudget allocation"
VERSION = 1


def certificate_document(
    problem: AllocationProblem,
    solution: AllocationSolution,
    *,
    constraints: Constraints | None = None,
    about: Mapping[str, str | int | float | None] | None = None,
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The certificate of an optimal allocation as JSON-able values; ``certificate_text`` writes it.

    Args:
        solution: from ``optimal_allocation(problem, …, constraints=…).solution``.
        about: names for people: the model, its fingerprint, the calibration, the allocation.
        files: sha256 of each file of the packed model, by its path in the folder, where it exists.

    Raises:
        ConfigError: the solution is of another problem.
    """
    if solution.choice.shape != (len(problem.specs),):
        raise ConfigError(f"a solution for {len(solution.choice)} matrices is none for {len(problem.specs)}")
    table = constrained(problem, constraints)
    available = np.isfinite(problem.errors)
    multiplier, prices = _prices(table, solution)
    document: dict[str, Any] = {
        "certificate": KIND,
        "version": VERSION,
        "about": dict(about or {}),
        "numerics_version": NUMERICS_VERSION,
        "budget": solution.budget,
        "total_bytes": solution.total_bytes,
        "objective": solution.objective,
        "lower_bound": solution.lower_bound,
        "gap": solution.gap,
        "optimal": solution.optimal,
        "proof": solution.proof,
        "tolerance": solution.tolerance,
        "shadow_price": solution.multiplier,
        "multiplier": multiplier,
        "constraints": constraints.to_dict() if constraints else None,
        "max_configs": table.max_configs,
        "files": dict(sorted(files.items())) if files else None,
        "matrices": [str(spec.key) for spec in problem.specs],
        "choice": solution.choice.tolist(),
        "members": table.member_of.tolist(),
        "components": table.component.tolist(),
        "labels": _labels(table).tolist(),
        "prices": _rows(prices),
        "allowed": ["".join("01"[int(flag)] for flag in row) for row in table.allowed],
        "shapes": [[spec.out_features, spec.in_features] for spec in problem.specs],
        "menu": [config.to_dict() for config in problem.menu],
        "weights": problem.weights.tolist(),
        "errors": _rows(problem.errors),
        "nbytes": np.where(available, problem.nbytes, 0).tolist(),
    }
    document["problem_hash"] = digest({name: document[name] for name in PROBLEM})
    document["digest"] = digest(document)
    return document


def certificate_text(document: Mapping[str, Any]) -> str:
    """The document as JSON, a line a field and a line a row: equal documents are equal texts, and two diff well."""
    lines = []
    for name, value in document.items():
        long = isinstance(value, list) and len(value) > 0 and isinstance(value[0], list | dict | str)
        if long:
            rows = ",\n".join("  " + json.dumps(row) for row in value)
            lines.append(f"{json.dumps(name)}: [\n{rows}\n ]")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def check_constraints(document: Mapping[str, Any]) -> Check:
    """Whether what the certificate calls allowed is what its constraints say: the one check that needs bitbudget."""
    try:
        specs = tuple(
            MatrixSpec(MatrixKey.parse(name), out, in_, f"{name}.weight")
            for name, (out, in_) in zip(document["matrices"], document["shapes"], strict=True)
        )
        problem = AllocationProblem(
            specs,
            tuple(CompressionConfig.from_dict(fields) for fields in document["menu"]),
            np.array([[np.inf if e is None else e for e in row] for row in document["errors"]]),
            np.array(document["nbytes"], dtype=np.int64),
            np.array(document["weights"], dtype=np.float64),
        )
        table = constrained(problem, Constraints.from_dict(document["constraints"] or {}))
    except (CompressCoreError, KeyError, TypeError, ValueError) as error:
        return Check("constraints", False, f"the problem cannot be built again: {error}")
    wanted = {
        "allowed": ["".join("01"[int(flag)] for flag in row) for row in table.allowed],
        "members": table.member_of.tolist(),
        "components": table.component.tolist(),
        "labels": _labels(table).tolist(),
        "max_configs": table.max_configs,
    }
    for name, value in wanted.items():
        if document[name] != value:
            return Check("constraints", False, f"{name} is not what the constraints say")
    forbidden = int(np.isfinite(problem.errors).sum() - table.allowed.sum())
    return Check("constraints", True, f"{forbidden} cells forbidden, {table.n_components} rows free to choose")


def _labels(table: ConstrainedTable) -> NDArray[np.int64]:
    """(k,) what the classes of a component agree on; all 0 where every component is one class."""
    if table.n_components == len(table.component):
        return np.zeros(len(table.problem.menu), dtype=np.int64)
    return np.unique(table.labels, return_inverse=True)[1].astype(np.int64)


def _prices(table: ConstrainedTable, solution: AllocationSolution) -> tuple[float, NDArray[np.float64]]:
    """λ and (C, L) prices on whole bytes: any prices give a bound, these give the solution's."""
    sets = SetTable.build(table.errors, table.nbytes, None, table.component, table.labels)
    smallest = np.where(np.isfinite(table.errors), table.nbytes, np.iinfo(np.int64).max).min(axis=1)
    if solution.prices is not None:
        multiplier, rows = solution.prices.multiplier, solution.prices.rows.copy()
    else:
        multiplier = solution.multiplier
        rows = sets.least(sets.cost(multiplier), np.arange(len(table.problem.menu)))
    for at in range(rows.shape[1]):
        rows[~(np.isfinite(table.errors) & (sets.label == at)).any(axis=1), at] = np.inf
    # a class that need agree with none has one price, whatever the label
    alone = np.bincount(table.component)[table.component] == 1
    rows[alone] = rows[alone, :1]
    return multiplier, rows + multiplier * smallest[:, None]


def _rows(values: NDArray[np.float64]) -> list[list[float | None]]:
    """JSON knows no infinity: what is not there is null."""
    return [[float(v) if np.isfinite(v) else None for v in row] for row in values]
