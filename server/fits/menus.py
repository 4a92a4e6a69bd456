"""Which measurements one fit is of: those of one codebook, one size of trellis and one choice of factor bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from compress_core.config import UNROTATED_CODEBOOKS
from compress_core.errors import FitError
from results_db.params import FitParams
from results_db.tables import Measurement


class _Kind(NamedTuple):
    """What distinguishes measurements that no curve in (b_q, rank) may join."""

    codebook: str
    states: int | None
    #: of the configs with a rank; None where there are none
    factor_bits: tuple[int, int] | None


def named(params: FitParams, rows: Sequence[Measurement], calibration_id: str) -> tuple[FitParams, list[Measurement]]:
    """The params with the one kind of measurements that they can mean, and those measurements.

    Errors of two codebooks, two sizes of trellis or factors of different bits are no repetitions of each other: one
    curve through both would be wrong for either. Those of rank 0 have no factors and belong to all.

    Raises:
        FitError: no kind, or more than one, fits what is asked; the message lists what is measured.
    """
    measured = _kinds(rows)
    meant = [kind for kind in measured if _fits(kind, params)]
    if len(meant) > 1:
        needed = ["codebook", "for the trellis states"]
        needed += ["factor_bits_l and factor_bits_r"] if _factors_differ(meant) else []
        raise FitError(
            f"{_list(meant)} are measured under calibration {calibration_id}, and a fit is of one: name "
            f"{', '.join(needed[:-1])} and {needed[-1]}"
        )
    if not meant:
        asked = [] if params.codebook is None else [f"codebook {params.codebook!r}"]
        asked += [] if params.states is None else [f"{params.states} states"]
        for side in ("l", "r"):
            bits = getattr(params, f"factor_bits_{side}")
            asked += [] if bits is None else [f"{bits} bits of {side.upper()}"]
        what = f"nothing is measured with {' and '.join(asked)}" if asked else "no codebook is measured"
        cure = f"name one that is ({_list(measured)})" if measured else "run a sweep first"
        raise FitError(f"{what} under calibration {calibration_id}: {cure}")
    kind = meant[0]
    left, right = kind.factor_bits or (None, None)
    fields = {"codebook": kind.codebook, "states": kind.states, "factor_bits_l": left, "factor_bits_r": right}
    return params.model_copy(update=fields), [m for m in rows if _belongs(m, kind)]


def _kinds(rows: Iterable[Measurement]) -> list[_Kind]:
    factors: dict[tuple[str, int | None], set[tuple[int, int]]] = {}
    for m in rows:
        found = factors.setdefault((m.codebook, m.states), set())
        if m.rank:
            found.add((m.factor_bits_l, m.factor_bits_r))
    return [
        _Kind(codebook, states, pair)
        for (codebook, states), pairs in sorted(factors.items(), key=lambda item: (item[0][0], item[0][1] or 0))
        for pair in (*sorted(pairs), *([] if pairs else [None]))
    ]


def _fits(kind: _Kind, params: FitParams) -> bool:
    # a baseline is fitted where it is asked for by name; what is left as it is has no curve
    by_default = params.codebook is None and kind.codebook not in UNROTATED_CODEBOOKS
    left, right = kind.factor_bits or (None, None)
    return (
        (by_default or kind.codebook == params.codebook)
        and params.states in (None, kind.states)
        and params.factor_bits_l in (None, left)
        and params.factor_bits_r in (None, right)
    )


def _belongs(row: Measurement, kind: _Kind) -> bool:
    return (row.codebook, row.states) == (kind.codebook, kind.states) and (
        not row.rank or (row.factor_bits_l, row.factor_bits_r) == kind.factor_bits
    )


def _factors_differ(kinds: Sequence[_Kind]) -> bool:
    """Two kinds differ in the bits of their factors alone."""
    return len({(kind.codebook, kind.states) for kind in kinds}) < len(kinds)


def _list(kinds: Sequence[_Kind]) -> str:
    differ = _factors_differ(kinds)

    def text(kind: _Kind) -> str:
        out = f"{kind.codebook} of {kind.states} states" if kind.states else kind.codebook
        if differ and kind.factor_bits is not None:
            left, right = kind.factor_bits
            out += f" with factors of {left} bits" if left == right else f" with factors of {left} and {right} bits"
        return out

    return ", ".join(text(kind) for kind in kinds)
