"""scipy's HiGHS on the same table: the rival that the exact solver is checked against."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, kron, vstack

#: what the costs of the smallest choice are scaled to: HiGHS stops at an absolute gap of 1e-6 whatever gap it is given
_SCALE = 1e6
_TIGHTENINGS = 200
#: violation of a row that HiGHS tolerates
_TOLERANCE = 1e-6


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """HiGHS writes to file descriptor 1 whatever ``disp`` says."""
    sys.stdout.flush()
    saved = os.dup(1)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@dataclass(frozen=True, eq=False)
class HighsSolution:
    """``choice`` (n,) fits the budget to the byte; None where HiGHS finds the table infeasible."""

    choice: NDArray[np.int64] | None
    objective: float
    #: in HiGHS alone, all rounds together
    seconds: float
    #: how often its choice exceeded the budget and its cap was tightened
    tightened: int


def solve_with_highs(errors: NDArray[np.float64], nbytes: NDArray[np.int64], budget: int) -> HighsSolution:
    """The same program as ``solve_allocation`` solves, at gap 0.

    Everything is done to help HiGHS: bytes are counted above each row's smallest option and in units of the room,
    errors above each row's least one, options that fit with no choice of the others are left out. It accepts a row that
    is violated by 1e-6, so its cap is tightened until its choice truly fits.

    Raises:
        RuntimeError: HiGHS says neither "optimal" nor "infeasible", or never finds a choice that fits.
    """
    n, k = errors.shape
    available = np.isfinite(errors)
    smallest = np.where(available, nbytes, np.iinfo(np.int64).max).min(axis=1)
    room = budget - int(smallest.sum())
    extra = np.where(available, nbytes - smallest[:, None], 0)
    # where the room is negative every option stays, so that the verdict is HiGHS's own
    open_ = available & ((extra <= room) | (room < 0))
    above = np.where(available, errors - np.where(available, errors, np.inf).min(axis=1)[:, None], 0.0)
    first = above[np.arange(n), np.where(available, nbytes, np.iinfo(np.int64).max).argmin(axis=1)].sum()
    cost = np.where(open_, above, 0.0).ravel() * (_SCALE / first if first > 0 else 1.0)
    unit = max(abs(room), 1)
    one_each = kron(np.eye(n), np.ones((1, k)), format="csr")
    weight = csr_array(np.where(open_, extra, 0).reshape(1, -1) / unit)
    cap, seconds = room / unit, 0.0
    for tightened in range(_TIGHTENINGS):
        limits = LinearConstraint(
            vstack([one_each, weight], format="csr"), np.append(np.ones(n), -np.inf), np.append(np.ones(n), cap)
        )
        began = time.perf_counter()
        with quiet_stdout():
            found = milp(
                cost,
                constraints=[limits],
                integrality=np.ones(n * k),
                bounds=Bounds(0, open_.ravel().astype(float)),
                options={"mip_rel_gap": 0},
            )
        seconds += time.perf_counter() - began
        if found.status == 2:
            return HighsSolution(None, math.inf, seconds, tightened)
        if found.status != 0:
            raise RuntimeError(f"HiGHS gave up: {found.message}")
        choice = found.x.reshape(n, k).argmax(axis=1)
        over = int(nbytes[np.arange(n), choice].sum()) - budget
        if over <= 0:
            return HighsSolution(choice, math.fsum(errors[np.arange(n), choice]), seconds, tightened)
        # to where, its tolerance included, a quarter of this excess would still pass: few rounds, little cut off
        tighter = (room + over // 4) / unit - _TOLERANCE
        cap = tighter if tighter < cap else cap - _TOLERANCE / 8
    raise RuntimeError(f"HiGHS found no choice that fits in {_TIGHTENINGS} rounds")
