"""The upper half of a symmetric matrix as bytes: row i's entries i … n−1, float32, n(n+1)/2 in all.

A width of 29568 makes a half of 1.75 GB and a square of 3.5 GB: neither is ever held twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from compress_core.calibrate.second_moment import is_finite, panel_rows
from compress_core.checkpoint.headers import TensorHeader
from compress_core.errors import CalibrationError, NonFiniteValues


def half_size(n: int) -> int:
    """Entries of the upper half of an n × n matrix, with the diagonal."""
    return n * (n + 1) // 2


def half_pieces(panels: Iterable[tuple[slice, Tensor]]) -> Iterator[memoryview]:
    """The half's bytes, row by row, from panels as ``SecondMoment.panels`` makes them."""
    for rows, panel_PI in panels:
        values = panel_PI.contiguous().numpy()
        for row in range(rows.stop - rows.start):
            yield values[row, row:].data.cast("B")
        del values, panel_PI  # before the next one is made


def square_panels(square_II: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The panels of a symmetric matrix that lies whole in memory."""
    for rows in panel_rows(square_II.shape[0]):
        yield rows, square_II[rows, rows.start :]


def read_square(half: TensorHeader, n: int) -> Tensor:
    """The symmetric (n, n) matrix of a stored half; memory: the square alone.

    Raises:
        CalibrationError: the file became shorter since it was opened.
        NonFiniteValues: NaN or infinity in it.
    """
    out_II = torch.empty((n, n))
    values = out_II.numpy()
    with half.file.open("rb") as stream:
        stream.seek(half.begin)
        for row in range(n):
            target = values[row, row:].data.cast("B")
            if stream.readinto(target) != len(target):
                raise CalibrationError(f"{half.file} became shorter since it was opened: run calibrate again")
    for rows in panel_rows(n):
        corner_PP = out_II[rows, rows].triu()
        out_II[rows, rows] = corner_PP + corner_PP.triu(1).T
        if not is_finite(out_II[rows, rows.start :]):
            raise NonFiniteValues(f"H of {half.name} in {half.file} holds NaN or infinity: run calibrate again")
        out_II[rows.stop :, rows] = out_II[rows, rows.stop :].T
    return out_II
