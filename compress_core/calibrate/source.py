"""HessianSource: where the H of a matrix comes from. Callers ask layer by layer, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from compress_core.matrix import MatrixKey

if TYPE_CHECKING:
    from torch import Tensor

    from compress_core.calibrate.info import CalibrationInfo


class HessianSource(Protocol):
    """A stored calibration, or one that is computed while it is used."""

    @property
    def info(self) -> CalibrationInfo:
        """What H is made from."""

    def hessian(self, key: MatrixKey) -> Tensor:
        """H of the matrix's input: (in, in) float32, symmetric, on the CPU; a new tensor.

        Raises:
            CalibrationError: there is none for this matrix.
            NonFiniteValues: the file is damaged, or activations overflowed.
        """

    def close(self) -> None:
        """All is done that H was needed for: scratch files go. A computation that will go on does not call it."""
