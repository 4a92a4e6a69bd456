"""RowCodes: the codes of Q, and their values a strip of rows at a time.

On the CPU a strip's values stay in the cache until they are used; values of a whole matrix would have to be written to
memory that the system first clears, which takes longer than decoding them. An accelerator decodes all rows at once.

Shapes: O = out_features, I = in_features, R = rows of a strip, C = blocks a row, K = codes a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_core.codebooks import Codebook
from compress_core.codebooks.base import even_strips
from compress_core.codebooks.rtn import rtn_units

#: weights of a strip on the CPU
_STRIP = 1 << 18


@dataclass(frozen=True)
class RowCodes:
    """Codes of a matrix of shape ``shape``, decoded in units of its scales."""

    shape: tuple[int, int]
    #: (O, I) where each weight has a code of its own, else (O, C, K); 16-bit floats are values, not codes
    codes: Tensor
    #: None: the uniform grid of the baselines, or values
    codebook: Codebook | None
    bits: int
    #: codes (O, I − 8·C) of the columns that make no whole block, and their codebook
    tail: tuple[Tensor, Codebook] | None = None

    def strips(self, least: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """Neighbouring rows, about ``least`` or more, and their values (R, I) float32, from top to bottom."""
        rows, columns = self.shape
        most = max(least, _STRIP // columns) if self.codes.device.type == "cpu" else rows
        cuts = even_strips(rows, most) if self.codebook is None else self.codebook.strips(rows, most)
        for strip in cuts:
            yield strip, self._decode(strip)

    def values(self) -> Tensor:
        """Values (O, I) float32."""
        q_OI = torch.empty(self.shape, dtype=torch.float32, device=self.codes.device)
        for strip, values_RI in self.strips():
            q_OI[strip] = values_RI
        return q_OI

    def _decode(self, strip: slice) -> Tensor:
        codes = self.codes[strip]
        if codes.is_floating_point():
            return codes.to(torch.float32)
        if self.codebook is None:
            return rtn_units(codes, self.bits)
        if codes.ndim == 2:
            return self.codebook.decode(codes)
        rows, blocks, codes_a_block = codes.shape
        whole = self.codebook.decode(codes.reshape(rows * blocks, codes_a_block))
        whole = whole.reshape(rows, blocks * self.codebook.block)
        if self.tail is None:
            return whole
        tail_codes, tail_codebook = self.tail
        return torch.cat([whole, tail_codebook.decode(tail_codes[strip])], dim=1)
