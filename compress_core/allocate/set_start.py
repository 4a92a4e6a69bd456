"""Where the search for the best m columns begins: a set that no single exchange improves, and prices that suit it."""

from __future__ import annotations

import numpy as np

from compress_core.allocate.set_bound import Float, Int, Prices, SetTable

#: rounds of "best set at λ, then λ of that set"; they meet after two or three
_ROUNDS = 6
#: halvings of the interval in which λ lies
_BISECTIONS = 50
#: λ beyond which no choice of columns is worth looking for: errors are at most 1e150, bytes whole
_DEAREST = 1e200


def starting_sets(table: SetTable, m: int) -> list[tuple[int, ...]]:
    """Sets of at most m columns worth trying, the most promising last. Empty where none was found that fits."""
    everything = np.arange(table.errors.shape[1])
    multiplier = multiplier_of(table, everything)
    found: list[tuple[int, ...]] = []
    if multiplier is None:
        return found
    for _ in range(_ROUNDS):
        columns = best_exchange(table, table.cost(multiplier), m)
        if columns in found:
            break
        own = multiplier_of(table, np.array(columns))
        if own is None:  # too large for the budget at any λ: bytes must cost more
            multiplier = 4 * multiplier if multiplier else _dear(table)
            continue
        found.append(columns)
        multiplier = own
    return found


def starting_prices(table: SetTable, columns: tuple[int, ...]) -> Prices:
    """Prices between the cheapest and the second cheapest cell of the set: those of its columns balance the others."""
    multiplier = multiplier_of(table, np.array(columns)) or 0.0
    cost = table.cost(multiplier)
    offered, label = cost[:, list(columns)], table.label[:, list(columns)]
    rows = np.zeros((len(cost), table.n_labels))
    fallback = table.least(cost, np.arange(cost.shape[1]))
    for at in range(table.n_labels):
        ordered = np.sort(np.where(label == at, offered, np.inf), axis=1)
        first = ordered[:, 0]
        second = ordered[:, 1] if len(columns) > 1 else first
        price = np.where(np.isfinite(second), (first + second) / 2, first)
        price = np.where(np.isfinite(price), price, fallback[:, at])
        rows[:, at] = np.where(np.isfinite(price), price, 0.0)
    return Prices(multiplier, rows)


def free_prices(table: SetTable) -> Prices:
    """Prices that make every ρ zero: the bound without any limit on the number of columns."""
    everything = np.arange(table.errors.shape[1])
    multiplier = multiplier_of(table, everything) or 0.0
    rows = table.least(table.cost(multiplier), everything)
    return Prices(multiplier, np.where(np.isfinite(rows), rows, 0.0))


def multiplier_of(table: SetTable, columns: Int) -> float | None:
    """The least λ, up to bisection, at which the cheapest cells of these columns fit; None where none does."""
    if table.room is None:
        return 0.0
    rows = np.arange(len(table.errors))

    def fits(multiplier: float) -> bool:
        assert table.room is not None
        choice = table.choose(table.cost(multiplier), columns)
        available = bool(np.isfinite(table.errors[rows, choice]).all())
        return available and int(table.extra[rows, choice].sum()) <= table.room

    if fits(0.0):
        return 0.0
    low, high = 0.0, _dear(table)
    while not fits(high):
        low, high = high, 8 * high
        if high > _DEAREST:
            return None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def best_exchange(table: SetTable, cost: Float, m: int) -> tuple[int, ...]:
    """Columns chosen greedily, then exchanged one at a time while that lowers the total cost."""
    finite = np.isfinite(cost)
    worst = np.where(finite, cost, 0.0).max(initial=0.0) * (len(cost) + 1) + 1.0
    known = np.where(finite, cost, worst)
    chosen: list[int] = []
    for _ in range(m):
        totals = _totals_with_one_more(table, known, chosen, worst)
        column = int(totals.argmin())
        if column in chosen:
            break
        chosen.append(column)
    total = float(_totals_with_one_more(table, known, chosen, worst)[chosen[0]])
    while True:
        best, exchange = total - 1e-12 * abs(total), None
        for out in chosen:
            rest = [j for j in chosen if j != out]
            totals = _totals_with_one_more(table, known, rest, worst)
            column = int(totals.argmin())
            if totals[column] < best:
                best, exchange = float(totals[column]), [*rest, column]
        if exchange is None:
            return tuple(sorted(set(chosen)))
        total, chosen = best, exchange


def _totals_with_one_more(table: SetTable, cost: Float, columns: list[int], worst: float) -> Float:
    """(k,) the total cost with ``columns`` and one column more, for every one more; finite costs, ``worst`` if none."""
    least = np.minimum(table.least(cost, np.array(columns, dtype=np.int64)), worst)
    of_label = np.take_along_axis(least, table.label, axis=1)
    gain = table.by_component(np.minimum(cost - of_label, 0.0))
    sums = np.where(table.valid, table.by_component(least), np.inf)
    label = np.zeros(gain.shape, dtype=np.int64)
    label[table.component] = table.label
    return np.minimum(sums.min(axis=1)[:, None], np.take_along_axis(sums, label, axis=1) + gain).sum(axis=0)


def _dear(table: SetTable) -> float:
    """A price at which the budget's room costs about as much as all errors together."""
    largest = np.where(np.isfinite(table.errors), table.errors, 0.0).max(axis=1).sum()
    return float(largest or 1.0) / max(table.room or 1, 1)
