"""Q of a matrix: rounding with a searched scale for each row, then coordinate descent.

A scale from the root mean square alone clips what heavy tails the rotation leaves, and clipped errors align with the
top directions of H; so every row tries scales around it and takes what its own H-weighted error prefers.

A chunk of rows goes through all of that at once, so that memory holds few copies of a large matrix. Rows that share
codewords are never parted.

Shapes: O = out_features, I = in_features, C = candidates, R = rows of a chunk, X = C·R. w_OI, h_II.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_core.codebooks import Codebook, codebook_for, get_codebook
from compress_core.config import CompressionConfig
from compress_core.descent import Curvature, descend
from compress_core.ldlq import Feedback, Rounded, ldlq
from compress_core.rooted_hessian import RootedHessian
from compress_core.row_scales import decode_row_scales, encode_row_scales, shifted

#: weights of a chunk, each candidate counted: a quarter of the matrix's, but no fewer and no more than this, or more on
#: accelerators, for which chunks are small work. In use are five float32 copies of a chunk
_CHUNK = (1 << 22, 1 << 24)
_CHUNK_ACCELERATOR = (1 << 26, 1 << 27)


@dataclass(frozen=True)
class RoundedRows:
    """Q and the stored codes of its row scales."""

    rounded: Rounded
    row_codes_O: Tensor

    @property
    def scale_O(self) -> Tensor:
        return self.rounded.scale_O


@dataclass(frozen=True)
class Rounder:
    """A codebook at a matrix: rounds with feedback, searches scales, descends."""

    codebook: Codebook
    #: rounds the columns that make no whole block
    tail: Codebook
    #: what row codes are relative to, 0-dim, normalised units
    largest: Tensor

    @classmethod
    def make(cls, w_OI: Tensor, config: CompressionConfig) -> Rounder:
        largest = 2 * w_OI.square().mean(1).sqrt().amax()
        codebook = codebook_for(w_OI.shape[0], config.codebook, config.b_q, w_OI.device, config.states)
        # columns that make no whole E8 block are coded one by one; a trellis tile may have one column
        tail = get_codebook("scalar", config.b_q, w_OI.device) if config.codebook == "e8" else codebook
        return cls(codebook, tail, largest)

    def natural_codes(self, w_OI: Tensor) -> Tensor:
        """Codes of the rows' root mean squares."""
        return encode_row_scales(w_OI.square().mean(1).sqrt(), self.largest)

    def round(self, w_OI: Tensor, feedback: Feedback, row_codes_O: Tensor) -> RoundedRows:
        """LDLQ at these scales."""
        rounded = self._empty(w_OI, decode_row_scales(row_codes_O, self.largest))
        for rows in self._chunks(w_OI):
            chunk = ldlq(w_OI[rows], feedback, self.codebook, self.tail, rounded.scale_O[rows])
            rounded.parts_PIO[:, :, rows] = chunk.parts_PIO
        return RoundedRows(rounded, row_codes_O)

    def descend(self, w_OI: Tensor, q: RoundedRows, curvature: Curvature, passes: int) -> RoundedRows:
        """Coordinate descent from ``q``; the objective on ``curvature`` never rises."""
        rounded = self._empty(w_OI, q.scale_O)
        for rows in self._chunks(w_OI):
            chunk = Rounded(q.rounded.parts_PIO[:, :, rows], q.scale_O[rows])
            for _ in range(passes):
                chunk = descend(w_OI[rows], chunk, curvature, self.codebook, self.tail)
            rounded.parts_PIO[:, :, rows] = chunk.parts_PIO
        return RoundedRows(rounded, q.row_codes_O)

    def search_rows(
        self, w_OI: Tensor, feedback: Feedback, root: RootedHessian, row_codes_O: Tensor, steps: tuple[int, ...]
    ) -> Tensor:
        """Codes, out of those ``steps`` away from ``row_codes_O``, at which each row's own error is least."""
        found_O = torch.empty_like(row_codes_O)
        for rows in self._chunks(w_OI, len(steps)):
            codes_CR, scale_CR, w_IX = self._candidates(w_OI[rows], row_codes_O[rows], steps)
            rounded = ldlq(w_IX.T, feedback, self.codebook, self.tail, scale_CR.reshape(-1), len(steps))
            error_CR = root.energies(w_IX - rounded.value_IO).reshape(scale_CR.shape)
            found_O[rows] = codes_CR.gather(0, error_CR.argmin(0, keepdim=True))[0]
        return found_O

    def search_units(
        self,
        w_OI: Tensor,
        feedback: Feedback,
        curvature: Curvature,
        row_codes_O: Tensor,
        steps: tuple[int, ...],
        passes: int,
    ) -> RoundedRows:
        """Round and descend at scales ``steps`` off ``row_codes_O``; rows that share codewords choose together."""
        found = self._empty(w_OI, torch.empty_like(w_OI[:, 0]))
        codes_O = torch.empty_like(row_codes_O)
        for rows in self._chunks(w_OI, len(steps)):
            codes_CR, scale_CR, w_IX = self._candidates(w_OI[rows], row_codes_O[rows], steps)
            rounded = ldlq(w_IX.T, feedback, self.codebook, self.tail, scale_CR.reshape(-1), len(steps))
            for _ in range(passes):
                rounded = descend(w_IX.T, rounded, curvature, self.codebook, self.tail, len(steps))
            error_CR = curvature.root.energies(w_IX - rounded.value_IO).reshape(scale_CR.shape)
            best_R = self.codebook.unit_sums(error_CR).argmin(0)
            at_R = torch.arange(len(best_R), device=w_OI.device)
            found.parts_PIO[:, :, rows] = rounded.parts_PIO[:, :, best_R * len(best_R) + at_R]
            found.scale_O[rows], codes_O[rows] = scale_CR[best_R, at_R], codes_CR[best_R, at_R]
        return RoundedRows(found, codes_O)

    def _candidates(self, w_RI: Tensor, row_codes_R: Tensor, steps: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Codes and scales (C, R), and C copies of the rows next to each other, transposed."""
        codes_CR = torch.stack([shifted(row_codes_R, step) for step in steps])
        return codes_CR, decode_row_scales(codes_CR, self.largest), w_RI.T.repeat(1, len(steps))

    def _chunks(self, w_OI: Tensor, candidates: int = 1) -> Iterator[slice]:
        rows, columns = w_OI.shape
        fewest, most = _CHUNK if w_OI.device.type == "cpu" else _CHUNK_ACCELERATOR
        weights = min(max(rows * columns // 4, fewest), most)
        return self.codebook.strips(rows, max(1, weights // (candidates * columns)))

    def _empty(self, w_OI: Tensor, scale_O: Tensor) -> Rounded:
        return Rounded(w_OI.new_empty(self.codebook.stages, w_OI.shape[1], w_OI.shape[0]), scale_O)
