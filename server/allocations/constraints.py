"""Constraints of a request, held against the model; every refusal names its field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress_core.allocate import AllocationProblem, Constraints, Group, Limit, Pin, Veto
from compress_core.allocate.constrained import constrained
from compress_core.config import CompressionConfig
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
        fields_of = spec.model_dump(exclude_none=True)
        for i, pin in enumerate(fields_of["pins"]):
            pin["config"] = from_menu(pin["config"], problem.menu, f"{_FIELD}.pins.{i}")
        found = Constraints.from_dict(fields_of)
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


def from_menu(fields: Mapping[str, Any], menu: Sequence[CompressionConfig], field: str) -> dict[str, Any]:
    """Fields of a config, those left out taken from the one config of the menu that has these.

    Defaults would name a config that was never measured: ``{b_q: 4, rank: 0}`` on a menu of another codebook. Where
    none has them, the fields are returned as they are, for the checks behind this one to judge; so they are where
    they are complete.

    Raises:
        Problem: several have them; ``field`` and what tells these apart are named.
    """
    known = [config.to_dict() for config in menu]
    found = [config for config in known if all(name in config and config[name] == fields[name] for name in fields)]
    if len(found) > 1:
        apart = sorted(name for name in found[0] if any(config[name] != found[0][name] for config in found))
        raise invalid(
            f"{field}.config",
            f"{len(found)} configs of the menu are like this: name {' and '.join(apart)}, too",
            slug="invalid-config",
        )
    return found[0] if found else dict(fields)


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
