"""Constraints of a request, held against the model; every refusal names its field."""

from __future__ import annotations

from compress_core.allocate import AllocationProblem, Constraints, Group, Limit, Pin, Veto
from compress_core.allocate.constrained import constrained
from compress_core.errors import ConfigError
from results_db.constraints import ConstraintSpec
from server.kit.problem import Problem, core_problem, invalid

_FIELD = "constraints"


def check_constraints(spec: ConstraintSpec | None, problem: AllocationProblem) -> Constraints:
    """The constraints in the core's words; those that ask for nothing where there are none.

    Raises:
        Problem: an entry is not valid, matches no matrix, or leaves a matrix nothing.
    """
    if spec is None:
        return Constraints()
    try:
        found = Constraints.from_dict(spec.model_dump(exclude_none=True))
    except ConfigError as error:
        culprit, _, message = str(error).partition(": ")
        raise invalid(f"{_FIELD}.{culprit}", message, slug=error.code) from error
    fields: dict[str, Pin | Veto | Limit | Group] = {}
    for section in ("pins", "vetoes", "limits", "groups"):
        fields |= {f"{_FIELD}.{section}.{i}": entry for i, entry in enumerate(getattr(found, section))}
    for field, entry in fields.items():
        if not any(entry.matrices.matches(matrix.key) for matrix in problem.specs):
            raise invalid(field, f"{entry}: the model has no such matrix", slug="unknown-matrix")
    try:
        constrained(problem, found)
    except ConfigError as error:
        named = [field for field, entry in fields.items() if str(error).startswith(str(entry))]
        raise core_problem(error, named[0] if named else _FIELD) from error
    return found


def refuse_constraints(spec: ConstraintSpec | None, kind: str) -> None:
    """Only the exact solver keeps constraints.

    Raises:
        Problem: there are some.
    """
    if spec is not None:
        raise Problem(
            422,
            "invalid-request",
            f"{_FIELD}: kind {kind} keeps no constraints: ask for kind optimal, or leave them out",
            errors=[{"field": _FIELD, "message": f"kind {kind} keeps no constraints"}],
        )
