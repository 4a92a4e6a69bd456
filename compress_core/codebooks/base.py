"""The one interface of all codebooks.

A codebook is made for a unit Gaussian source: the caller divides by a scale first. Some codebooks add up several
stages; ``nearest`` keeps the stages apart so that their codes can be read off later, outside the hot loop.

Shapes: C = independent candidates, R = rows, B = columns (a multiple of ``block`` unless the codebook says otherwise),
P = stages, K = codes a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor


def even_strips(rows: int, most: int) -> Iterator[slice]:
    """0 … rows in steps of ``most``."""
    for first in range(0, rows, most):
        yield slice(first, min(first + most, rows))


class Codebook(ABC):
    """Maps blocks of ``block`` neighbouring weights to ``len(code_bits)`` integers and back."""

    #: name in CompressionConfig.codebook
    name: str
    #: bits a weight, exact: sum(code_bits) == bits · block
    bits: int
    #: neighbouring columns that are coded together
    block: int
    #: stages whose values add up
    stages: int
    #: bits of each of a block's codes, in order
    code_bits: tuple[int, ...]
    #: mean squared error on a unit Gaussian at scale 1, as measured
    gaussian_mse: float

    @abstractmethod
    def nearest(self, x_CRB: Tensor, weight_CR: Tensor | None = None) -> Tensor:
        """Codewords next to the blocks of C independent candidates, as stages (P, C, R, B) float32.

        The stages' sum is the value. C may be left out. Rows matter to codebooks that code several rows together:
        ``weight_CR`` is then what a row's squared error counts for.
        """

    def unit_sums(self, x_CR: Tensor) -> Tensor:
        """Sums over the rows that share codewords, in the place of each row; here each row is on its own."""
        return x_CR

    @abstractmethod
    def codes(self, parts_PRB: Tensor) -> Tensor:
        """Integers (R, K) int32 of codewords that ``nearest`` gave for one candidate."""

    @abstractmethod
    def decode(self, codes_RK: Tensor) -> Tensor:
        """Values (R, B) float32 of the codes; bit-equal to the sum of the stages."""

    def strips(self, rows: int, most: int) -> Iterator[slice]:
        """Neighbouring rows, at most so many where that is possible, that ``decode`` alone as in the whole matrix."""
        return even_strips(rows, most)

    def encode(self, x_RB: Tensor) -> Tensor:
        """Codes (R, K) of the codewords next to ``x``, all rows weighing the same."""
        return self.codes(self.nearest(x_RB))
