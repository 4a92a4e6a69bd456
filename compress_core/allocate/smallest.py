"""The fewest bytes that constraints allow, and which of them raise it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.constrained import ConstrainedTable, constrained
from compress_core.allocate.constraints import Constraints, Group, Limit, Pin, Veto
from compress_core.allocate.few_configs import Evaluated, SetSearch
from compress_core.allocate.set_bound import SetTable
from compress_core.errors import ConfigError

#: constraints beyond which it is not worked out which of them raise the least bytes
_MOST_BLAMED = 64

Piece = Pin | Veto | Limit | Group | int


def smallest_choice(table: ConstrainedTable) -> NDArray[np.int64]:
    """(C,) columns of the classes with the fewest bytes in all.

    Raises:
        ConfigError: no ``max_configs`` configs of the menu cover every matrix.
    """
    # a cell that is not available costs more than any allocation, so that every set has a value
    forbidden = float(table.nbytes.sum()) + 1
    nbytes = np.where(np.isfinite(table.errors), table.nbytes, forbidden)
    sets = SetTable.build(nbytes, np.zeros_like(table.nbytes), None, table.component, table.labels)
    if table.max_configs is None:
        return sets.choose(np.where(nbytes < forbidden, nbytes, np.inf), np.arange(nbytes.shape[1]))
    classes = np.arange(len(nbytes))

    def evaluate(columns: tuple[int, ...], limit: float) -> Evaluated[NDArray[np.int64]] | None:
        choice = sets.choose(nbytes, np.array(columns))
        total = float(nbytes[classes, choice].sum())
        return Evaluated(total, choice, proven=True) if total < limit else None

    search = SetSearch(sets, table.max_configs, evaluate, tolerance=0.5)  # bytes are whole
    search.run()
    assert search.best is not None
    uncovered = nbytes[classes, search.best.answer] >= forbidden
    if uncovered.any():
        unsure = "" if search.proven else "; the search gave up before it had tried every set"
        raise ConfigError(
            f"at most {table.max_configs} configs: no so few configs of the menu are available for every matrix "
            f"({table.name_of(int(table.component[np.argmax(uncovered)]))} is left without){unsure}"
        )
    return search.best.answer


def smallest_bytes(table: ConstrainedTable) -> int:
    """Bytes of the smallest allocation under the constraints.

    Raises:
        ConfigError: as ``smallest_choice``.
    """
    choice = smallest_choice(table)
    return int(table.nbytes[np.arange(len(choice)), choice].sum())


def raisers(table: ConstrainedTable, smallest: int) -> list[str]:
    """The constraints without any one of which fewer bytes would do; where there is none, those that alone ask for
    more than the unconstrained least."""
    everything = table.constraints
    pieces: list[Piece] = [*everything.masks, *everything.groups]
    if table.max_configs is not None:
        pieces.append(table.max_configs)
    if len(pieces) > _MOST_BLAMED:
        return [f"{len(pieces)} constraints together"]
    decisive, alone = [], []
    free = smallest_bytes(constrained(table.problem))
    for index, piece in enumerate(pieces):
        name = f"at most {piece} configs" if isinstance(piece, int) else str(piece)
        others = _made_of([*pieces[:index], *pieces[index + 1 :]])
        if smallest_bytes(constrained(table.problem, others)) < smallest:
            decisive.append(name)
        elif smallest_bytes(constrained(table.problem, _made_of([piece]))) > free:
            alone.append(name)
    return decisive or alone


def _made_of(pieces: Sequence[Piece]) -> Constraints:
    return Constraints(
        pins=tuple(p for p in pieces if isinstance(p, Pin)),
        vetoes=tuple(p for p in pieces if isinstance(p, Veto)),
        limits=tuple(p for p in pieces if isinstance(p, Limit)),
        groups=tuple(p for p in pieces if isinstance(p, Group)),
        max_configs=next((p for p in pieces if isinstance(p, int)), None),
    )
