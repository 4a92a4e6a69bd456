"""Q of a matrix: rounding with a searched scale for each row, then coordinate descent.

A scale from the root mean square alone clips what heavy tails the rotation leaves, and clipped errors align with the
top directions of H; so every row tries scales around it and takes what its own H-weighted error prefers.

Shapes: O = out_features, I = in_features, C = candidates. w_OI, h_II.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress_core.codebooks import Codebook, codebook_for, get_codebook
from compress_core.config import CompressionConfig
from compress_core.descent import Curvature, descend
from compress_core.ldlq import Feedback, Rounded, ldlq
from compress_core.row_scales import decode_row_scales, encode_row_scales, shifted


@dataclass(frozen=True)
class RoundedRows:
    """Q and the stored codes of its row scales."""

    rounded: Rounded
    row_codes_O: Tensor
    scale_O: Tensor


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
        scale_O = decode_row_scales(row_codes_O, self.largest)
        return RoundedRows(ldlq(w_OI, feedback, self.codebook, self.tail, scale_O), row_codes_O, scale_O)

    def descend(self, w_OI: Tensor, q: RoundedRows, curvature: Curvature, passes: int) -> RoundedRows:
        """Coordinate descent from ``q``; the objective on ``curvature`` never rises."""
        rounded = q.rounded
        for _ in range(passes):
            rounded = descend(w_OI, rounded, curvature, self.codebook, self.tail, q.scale_O)
        return RoundedRows(rounded, q.row_codes_O, q.scale_O)

    def search_rows(self, w_OI: Tensor, feedback: Feedback, row_codes_O: Tensor, steps: tuple[int, ...]) -> Tensor:
        """Codes, out of those ``steps`` away from ``row_codes_O``, at which each row's own error is least."""
        codes_CO, scale_CO, stacked_XI = self._candidates(w_OI, row_codes_O, steps)
        rounded = ldlq(stacked_XI, feedback, self.codebook, self.tail, scale_CO.reshape(-1), len(steps))
        error_CO = rounded.weighted_error_O(stacked_XI, feedback).reshape(scale_CO.shape)
        return codes_CO.gather(0, error_CO.argmin(0, keepdim=True))[0]

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
        codes_CO, scale_CO, stacked_XI = self._candidates(w_OI, row_codes_O, steps)
        scale_X = scale_CO.reshape(-1)
        rounded = ldlq(stacked_XI, feedback, self.codebook, self.tail, scale_X, len(steps))
        for _ in range(passes):
            rounded = descend(stacked_XI, rounded, curvature, self.codebook, self.tail, scale_X, len(steps))
        error_CO = rounded.weighted_error_O(stacked_XI, feedback).reshape(scale_CO.shape)
        best_O = self.codebook.unit_sums(error_CO).argmin(0)
        rows = w_OI.shape[0]
        at_O = torch.arange(rows, device=w_OI.device)
        pick_O = best_O * rows + at_O
        chosen = Rounded(rounded.parts_PIO[:, :, pick_O], rounded.value_OI[pick_O])
        return RoundedRows(chosen, codes_CO[best_O, at_O], scale_CO[best_O, at_O])

    def _candidates(self, w_OI: Tensor, row_codes_O: Tensor, steps: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        codes_CO = torch.stack([shifted(row_codes_O, step) for step in steps])
        return codes_CO, decode_row_scales(codes_CO, self.largest), w_OI.repeat(len(steps), 1)
