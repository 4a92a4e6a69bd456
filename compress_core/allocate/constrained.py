"""ConstrainedTable: a problem under constraints, as masked cells and rows that agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.constraints import Constraints, Group, Pin
from compress_core.allocate.merged import MergedTable, merge_rows
from compress_core.allocate.problem import AllocationProblem
from compress_core.errors import ConfigError


@dataclass(frozen=True, eq=False)
class ConstrainedTable:
    """What is left of an AllocationProblem: n matrices in C classes (one config each) in R components (one b_q each).

    Pins, vetoes and limits are masks. A group on config makes a class; a group on b_q joins classes to a component, all
    of whose classes take columns of one b_q. Without groups each matrix is a class and a component of its own. At most
    m configs is not in the table: ``max_configs`` says it.
    """

    problem: AllocationProblem
    constraints: Constraints
    #: (n, k) bool: available and not forbidden
    allowed: NDArray[np.bool_]
    #: (n,) the class of each matrix
    member_of: NDArray[np.int64]
    #: (C,) the component of each class
    component: NDArray[np.int64]
    #: (C, k) Σ a·ε over a class's matrices, inf where a matrix may not take the column
    errors: NDArray[np.float64]
    #: (C, k) int64
    nbytes: NDArray[np.int64]

    @property
    def max_configs(self) -> int | None:
        """m, where it says anything about a menu of this size."""
        m = self.constraints.max_configs
        return None if m is None or m >= len(self.problem.menu) else m

    @property
    def labels(self) -> NDArray[np.int64]:
        """(k,) what the classes of a component agree on: b_q of each column."""
        return np.array([config.b_q for config in self.problem.menu], dtype=np.int64)

    @property
    def n_components(self) -> int:
        return int(self.component.max()) + 1

    def merged(self, columns: Iterable[int] | None = None, *, depth: int = 1) -> MergedTable:
        """The solver's rows; ``columns`` restricts the menu, ``depth`` is ``merge_rows``'s.

        Raises:
            ConfigError: a component has nothing left.
        """
        menu = range(len(self.problem.menu))
        offered = np.array(sorted(menu if columns is None else columns), dtype=np.int64)
        return merge_rows(
            self.errors, self.nbytes, self.component, self.labels, offered, name_of=self.name_of, depth=depth
        )

    def merged_component(self, row: int) -> MergedTable:
        """The row of one component alone."""
        classes = np.flatnonzero(self.component == row)
        return merge_rows(
            self.errors[classes],
            self.nbytes[classes],
            np.zeros(len(classes), dtype=np.int64),
            self.labels,
            np.arange(self.errors.shape[1]),
            name_of=lambda _: self.name_of(row),
        )

    def name_of(self, component: int) -> str:
        """A component as errors call it: its matrices."""
        names = [
            str(spec.key)
            for spec, member in zip(self.problem.specs, self.member_of, strict=True)
            if self.component[member] == component
        ]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return f"matrix {names[0]}" if len(names) == 1 else f"the group of {', '.join(names[:8])}{more}"

    def spread(self, class_columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) columns of the matrices from (C,) columns of the classes."""
        return class_columns[self.member_of]


def constrained(problem: AllocationProblem, constraints: Constraints | None = None) -> ConstrainedTable:
    """Apply constraints to a problem.

    Raises:
        ConfigError: a constraint matches no matrix, pins a config that is not on the menu, or leaves a matrix or a
            group nothing; the message names matrix and constraint.
    """
    constraints = constraints or Constraints()
    allowed = _masked(problem, constraints)
    classes = _joined(problem, [g for g in constraints.groups if g.agree == "config"])
    everything = _joined(problem, constraints.groups)
    errors, nbytes = _summed(problem, allowed, classes)
    component = np.zeros(len(errors), dtype=np.int64)
    component[classes] = everything
    table = ConstrainedTable(problem, constraints, allowed, classes, component, errors, nbytes)
    _refuse_empty(table)
    return table


def _masked(problem: AllocationProblem, constraints: Constraints) -> NDArray[np.bool_]:
    allowed = np.isfinite(problem.errors)
    empty = np.flatnonzero(~allowed.any(axis=1))
    if len(empty):
        missing = problem.specs[empty[0]].key
        raise ConfigError(f"matrix {missing} has no available config: measure or fit at least one")
    for group in constraints.groups:
        if not any(group.matrices.matches(spec.key) for spec in problem.specs):
            raise ConfigError(f"{group}: the model has no such matrix")
    before: dict[int, list[str]] = {}
    for constraint in constraints.masks:
        rows = [i for i, spec in enumerate(problem.specs) if constraint.matrices.matches(spec.key)]
        if not rows:
            raise ConfigError(f"{constraint}: the model has no such matrix")
        if isinstance(constraint, Pin):
            _check_pin(problem, constraint, rows)
        for i in rows:
            spec = problem.specs[i]
            for j in np.flatnonzero(allowed[i]):
                allowed[i, j] = constraint.allows(spec, problem.config_of(i, int(j)), int(problem.nbytes[i, j]))
            if not allowed[i].any():
                after = f" together with {'; '.join(before[i])}" if i in before else ""
                raise ConfigError(f"{constraint}{after} leaves matrix {spec.key} no available config")
            before.setdefault(i, []).append(str(constraint))
    return allowed


def _check_pin(problem: AllocationProblem, pin: Pin, rows: list[int]) -> None:
    """A pin asks for a cell that exists.

    Raises:
        ConfigError: the menu lacks the config for some matrix, or it is not available there.
    """
    for i in rows:
        spec = problem.specs[i]
        columns = [
            j for j in range(len(problem.menu)) if pin.allows(spec, problem.config_of(i, j), int(problem.nbytes[i, j]))
        ]
        if not columns:
            raise ConfigError(f"{pin}: the menu has no such config, it has {', '.join(map(str, problem.menu))}")
        if not np.isfinite(problem.errors[i, columns]).any():
            raise ConfigError(f"{pin}: matrix {spec.key} has no error for it: measure or fit it first")


def _joined(problem: AllocationProblem, groups: Iterable[Group]) -> NDArray[np.int64]:
    """(n,) index of the set that each matrix is in once all groups have joined theirs, by first appearance."""
    parent = list(range(len(problem.specs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for group in groups:
        first: dict[tuple[int, int], int] = {}
        for i, spec in enumerate(problem.specs):
            if group.matrices.matches(spec.key):
                together = group.experts == "together"
                home = first.setdefault((spec.key.layer_idx, 0 if together else spec.key.expert_idx), i)
                a, b = sorted((root(home), root(i)))
                parent[b] = a
    index: dict[int, int] = {}
    return np.array([index.setdefault(root(i), len(index)) for i in range(len(parent))], dtype=np.int64)


def _summed(
    problem: AllocationProblem, allowed: NDArray[np.bool_], classes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(C, k) errors and bytes, added over the matrices of each class."""
    masked = np.where(allowed, problem.objective_table, np.inf)
    n_classes = int(classes.max()) + 1
    if n_classes == len(classes):
        return masked, np.where(allowed, problem.nbytes, 0)
    errors = np.zeros((n_classes, masked.shape[1]))
    nbytes = np.zeros(errors.shape, dtype=np.int64)
    np.add.at(errors, classes, masked)
    np.add.at(nbytes, classes, np.where(allowed, problem.nbytes, 0))
    return errors, np.where(np.isfinite(errors), nbytes, 0)


def _refuse_empty(table: ConstrainedTable) -> None:
    """Groups may leave nothing that all members can take.

    Raises:
        ConfigError: they do; the message names the matrices and the constraints.
    """
    finite = np.isfinite(table.errors)
    labels = table.labels
    for component in range(table.n_components):
        classes = np.flatnonzero(table.component == component)
        shared = (
            finite[classes[0]]
            if len(classes) == 1
            else np.array([all((finite[c] & (labels == b)).any() for c in classes) for b in np.unique(labels)])
        )
        if not shared.any():
            keys = [
                spec.key
                for spec, member in zip(table.problem.specs, table.member_of, strict=True)
                if table.component[member] == component
            ]
            names = [
                str(c)
                for c in (*table.constraints.groups, *table.constraints.masks)
                if any(c.matrices.matches(key) for key in keys)
            ]
            raise ConfigError(f"{'; '.join(names)}: nothing is left that {table.name_of(component)} can agree on")
