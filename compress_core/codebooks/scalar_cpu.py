"""Panels of single columns on the CPU: the loops of rounding and of descent, compiled.

A step over one column is a few operations on a vector of rows. As tensor operations each of them costs more to call
than to compute; here a panel is one call. Rows are independent, so strips of them stay in the nearest cache.

Shapes: P = columns of the panel, O = rows. Everything is *_PO: columns are contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

# no reassociation: results do not depend on how a loop was vectorised
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "fastmath": {"nnan", "ninf", "nsz", "contract"},
    "error_model": "numpy",
    "boundscheck": False,
}
#: rows that are worked on together
_STRIP = 256
#: edges that are counted one by one; more are searched by halving
_FEW = 15


@njit(**_OPTIONS)
def _nearest(x_O, levels, edges, value_O, at_O, count):  # type: ignore[no-untyped-def]
    """value = the level next to x; an edge itself belongs to the level below, as in torch.bucketize."""
    if edges.shape[0] <= _FEW:
        for o in range(count):
            value_O[o] = levels[0]
        for i in range(edges.shape[0]):
            edge, level = edges[i], levels[i + 1]
            for o in range(count):
                value_O[o] = level if x_O[o] > edge else value_O[o]
        return
    for o in range(count):
        at_O[o] = 0
    half = (edges.shape[0] + 1) >> 1
    while half > 0:  # the halves in step over all rows, so that the loop within has no branch
        for o in range(count):
            at_O[o] += half if x_O[o] > edges[at_O[o] + half - 1] else 0
        half >>= 1
    for o in range(count):
        value_O[o] = levels[at_O[o]]


@njit(**_OPTIONS)
def sort_into(x_N, values, edges, value_N):  # type: ignore[no-untyped-def]
    """Of each x the value of its cell: there is one cell more than edges."""
    at_N = np.empty(_STRIP, np.int32)
    for first in range(0, x_N.shape[0], _STRIP):
        last = min(first + _STRIP, x_N.shape[0])
        _nearest(x_N[first:last], values, edges, value_N[first:last], at_N, last - first)


@njit(**_OPTIONS)
def round_panel(target_PO, unit_PP, w_PO, scale_O, inverse_O, levels, edges, value_PO, error_PO):  # type: ignore[no-untyped-def]
    """LDLQ of a panel: values and errors w − value·scale of its columns, in place.

    Args:
        target_PO: the weights with the errors of earlier panels fed back.
        unit_PP: Ũᵀ of the panel, of which what lies below the diagonal is read.
    """
    columns, rows = target_PO.shape
    x_O, at_O = np.empty(_STRIP, np.float32), np.empty(_STRIP, np.int32)
    for first in range(0, rows, _STRIP):
        count = min(_STRIP, rows - first)
        last = first + count
        scale, inverse = scale_O[first:last], inverse_O[first:last]
        for j in range(columns):
            target = target_PO[j, first:last]
            for o in range(count):
                x_O[o] = target[o]
            for k in range(j):
                share, error = unit_PP[j, k], error_PO[k, first:last]
                for o in range(count):
                    x_O[o] += share * error[o]
            for o in range(count):
                x_O[o] *= inverse[o]
            value, w, error = value_PO[j, first:last], w_PO[j, first:last], error_PO[j, first:last]
            _nearest(x_O, levels, edges, value, at_O, count)
            for o in range(count):
                error[o] = w[o] - value[o] * scale[o]


@njit(**_OPTIONS)
def descend_panel(  # type: ignore[no-untyped-def]
    gradient_PO, corner_PP, inverse_P, w_PO, old_PO, scale_O, inverse_O, levels, edges, value_PO, change_PO
):
    """Descent over a panel: new values where they lower the objective, and the change of the errors, in place.

    Args:
        gradient_PO: H e of the panel's columns before it is worked on.
        corner_PP: the panel's block of H on the diagonal.
        inverse_P: reciprocals of that block's diagonal (with a ridge).
        old_PO: the errors e before.
    """
    columns, rows = gradient_PO.shape
    x_O, next_O, g_O = np.empty(_STRIP, np.float32), np.empty(_STRIP, np.float32), np.empty(_STRIP, np.float32)
    at_O = np.empty(_STRIP, np.int32)
    for first in range(0, rows, _STRIP):
        count = min(_STRIP, rows - first)
        last = first + count
        scale, inverse = scale_O[first:last], inverse_O[first:last]
        for j in range(columns):
            gradient = gradient_PO[j, first:last]
            for o in range(count):
                g_O[o] = gradient[o]
            for k in range(j):
                share, change = corner_PP[j, k], change_PO[k, first:last]
                for o in range(count):
                    g_O[o] += share * change[o]
            w, old, value, change = (
                w_PO[j, first:last],
                old_PO[j, first:last],
                value_PO[j, first:last],
                change_PO[j, first:last],
            )
            curvature, step = corner_PP[j, j], inverse_P[j]
            for o in range(count):
                x_O[o] = (w[o] - old[o] + step * g_O[o]) * inverse[o]
            _nearest(x_O, levels, edges, next_O, at_O, count)
            for o in range(count):
                delta = w[o] - next_O[o] * scale[o] - old[o]
                # f(e + δ) − f(e) = δ (2 g + h δ)
                better = delta * (np.float32(2) * g_O[o] + curvature * delta) < 0
                change[o] = delta if better else np.float32(0)
                value[o] = next_O[o] if better else value[o]
