"""MergedTable: the rows that must agree made one row each, so that the solver sees independent rows only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress_core.errors import ConfigError

#: undominated combinations of one row beyond which a product is refused: the solver's tables are dense
MOST_OPTIONS = 20_000


@dataclass(frozen=True, eq=False, slots=True)
class MergedTable:
    """One row a component: a component's options are the undominated combinations of its classes' columns.

    ``errors`` (R, K) float64, inf where a row has fewer options; ``nbytes`` (R, K) int64; ``columns`` (C, K) int64: the
    menu's column that class c has in option o of its component, −1 where there is no such option.
    """

    errors: NDArray[np.float64]
    nbytes: NDArray[np.int64]
    columns: NDArray[np.int64]
    #: (C,) the row of each class
    component: NDArray[np.int64]

    def columns_of(self, option: NDArray[np.int64]) -> NDArray[np.int64]:
        """(C,) columns of the classes for (R,) options of the rows."""
        return self.columns[np.arange(len(self.columns)), option[self.component]]

    def with_component(self, row: int, one: MergedTable) -> MergedTable:
        """The table with another row for one component: ``one`` has that component alone."""
        width = max(self.errors.shape[1], one.errors.shape[1])

        def widened(values: NDArray[Any], fill: float) -> NDArray[Any]:
            return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)

        errors, nbytes, columns = widened(self.errors, np.inf), widened(self.nbytes, 0), widened(self.columns, -1)
        errors[row], nbytes[row] = widened(one.errors, np.inf)[0], widened(one.nbytes, 0)[0]
        columns[self.component == row] = widened(one.columns, -1)
        return MergedTable(errors, nbytes, columns, self.component)


def merge_rows(
    errors: NDArray[np.float64],
    nbytes: NDArray[np.int64],
    component: NDArray[np.int64],
    labels: NDArray[np.int64],
    offered: NDArray[np.int64],
    *,
    name_of: Callable[[int], str],
    depth: int = 1,
) -> MergedTable:
    """Combine the classes of each component: all of them take columns of one label.

    Args:
        errors: (C, k), inf where not available.
        nbytes: (C, k) int64.
        component: (C,) index of each class's component, 0 … R − 1, each used.
        labels: (k,) what the classes of one component must agree on (b_q).
        offered: the columns to choose from.
        name_of: a component's name in errors.
        depth: 1 keeps the undominated combinations; 2 also those that a single other one dominates, for a second best.

    Raises:
        ConfigError: a component has no combination, or more than ``MOST_OPTIONS`` undominated ones.
    """
    n_classes = len(errors)
    errors, nbytes, labels = errors[:, offered], nbytes[:, offered], labels[offered]
    n_rows = int(component.max()) + 1
    sizes = np.bincount(component, minlength=n_rows)
    if sizes.max() == 1:
        order = np.argsort(component, kind="stable")
        _refuse_empty(errors[order], name_of)
        return MergedTable(errors[order], nbytes[order], np.where(np.isfinite(errors), offered, -1), component)
    by_component = np.split(np.argsort(component, kind="stable"), np.cumsum(sizes)[:-1])
    rows = [_product(errors[c], nbytes[c], labels, name_of, row, depth) for row, c in enumerate(by_component)]
    width = max(len(e) for e, _, _ in rows)
    out_errors = np.full((n_rows, width), np.inf)
    out_nbytes = np.zeros((n_rows, width), dtype=np.int64)
    out_columns = np.full((n_classes, width), -1, dtype=np.int64)
    for row, (e, w, columns) in enumerate(rows):
        out_errors[row, : len(e)], out_nbytes[row, : len(e)] = e, w
        out_columns[by_component[row], : len(e)] = offered[columns.T]
    return MergedTable(out_errors, out_nbytes, out_columns, component)


def _refuse_empty(errors: NDArray[np.float64], name_of: Callable[[int], str]) -> None:
    empty = np.flatnonzero(~np.isfinite(errors).any(axis=1))
    if len(empty):
        raise ConfigError(f"{name_of(int(empty[0]))} has no config left")


def _product(
    errors: NDArray[np.float64],
    nbytes: NDArray[np.int64],
    labels: NDArray[np.int64],
    name_of: Callable[[int], str],
    row: int,
    depth: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Errors, bytes and (options, classes) columns of the undominated combinations, of every label."""
    found = []
    for label in np.unique(labels) if len(errors) > 1 else [None]:
        usable = [np.flatnonzero(np.isfinite(e) & (True if label is None else labels == label)) for e in errors]
        if any(not len(u) for u in usable):
            continue
        e, w, columns = errors[0, usable[0]], nbytes[0, usable[0]], usable[0][:, None]
        e, w, columns = _undominated(e, w, columns, depth)
        for c in range(1, len(errors)):
            more = usable[c]
            at, by = np.divmod(np.arange(len(e) * len(more)), len(more))
            e, w, columns = _undominated(
                e[at] + errors[c, more[by]],
                w[at] + nbytes[c, more[by]],
                np.column_stack([columns[at], more[by]]),
                depth,
            )
            if len(e) > MOST_OPTIONS:
                raise ConfigError(
                    f"{name_of(row)} has more than {MOST_OPTIONS:,} undominated combinations: let it agree on config, "
                    "or offer fewer configs"
                )
        found.append((e, w, columns))
    if not found:
        raise ConfigError(f"{name_of(row)} has no config that all of its matrices can take")
    e, w = np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])
    return _undominated(e, w, np.concatenate([f[2] for f in found]), depth)


def _undominated(
    e: NDArray[np.float64], w: NDArray[np.int64], columns: NDArray[np.int64], depth: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The combinations that fewer than ``depth`` others are no worse than in both, of equal ones the first."""
    order = np.lexsort((e, w))
    if depth > 1:  # equal combinations are one
        e_o, w_o = e[order], w[order]
        order = order[np.append(True, (e_o[1:] != e_o[:-1]) | (w_o[1:] != w_o[:-1]))]
    level = e[order]
    before = np.full(len(order), -np.inf)
    for _ in range(depth):
        # the least before, then the second least: what is left of each pair once the least is taken away
        level = np.maximum(level, before)
        before = np.concatenate([[np.inf], np.minimum.accumulate(level)[:-1]])
    keep = order[e[order] < before]
    return e[keep], w[keep], columns[keep]
