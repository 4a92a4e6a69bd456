"""Seconds of the pieces of sweep cells on small matrices, from which those of large ones are told.

The pieces are the ones that a sweep shares in different ways (``compress_core.plan.operations``): what belongs to an
input, to a matrix, to a codebook and its bits, to a rank.

Shapes: O = out_features, I = in_features. w_OI, h_II.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress_core.config import UNROTATED_CODEBOOKS, CompressionConfig
from compress_core.context import MatrixContext, prepare_input, prepare_matrix
from compress_core.decompose import compress_prepared
from compress_core.plan.operations import Kind, Size
from compress_core.plan.rates import Observation
from compress_core.precision import exact_float32
from compress_core.probe.clock import Clock
from compress_core.rounding import Rounder
from compress_core.sweep import Yardstick

#: (out_features, in_features), so that heights, widths and their products differ; by the device that they are work for
_SIZES: dict[str, tuple[tuple[int, int], ...]] = {
    "cpu": ((128, 256), (512, 256), (256, 768), (512, 512), (256, 1536)),
    "cuda": ((1024, 2048), (4096, 2048), (2048, 4096), (1024, 6144), (4096, 6144)),
}
#: warms up kernels and tables; not timed
_WARM_UP = (64, 64)
_RANKS = (16, 64)
#: directions that carry most of the inputs' energy
_DIRECTIONS = 32


#: a matrix and what is timed on it
Round = tuple[tuple[int, int], tuple[CompressionConfig, ...]]


@dataclass(frozen=True)
class CellProbe:
    """Times the pieces of some configs on one device."""

    clock: Clock
    #: of rank 0, those of one codebook and one number of states together: configs of a sweep share what they can
    families: tuple[tuple[CompressionConfig, ...], ...]
    sizes: tuple[tuple[int, int], ...]
    ranks: tuple[int, ...]

    @classmethod
    def of(cls, clock: Clock, configs: Sequence[CompressionConfig]) -> CellProbe:
        """The codebooks, bits and states of these configs; their least and largest rank, as far as sizes allow."""
        families: dict[tuple[str, int], dict[CompressionConfig, None]] = {}
        for config in configs:
            families.setdefault((config.codebook, config.states), {})[replace(config, rank=0)] = None
        sizes = _SIZES[clock.device.type]
        most = min(sizes[0]) // 2
        asked = sorted({min(config.rank, most) for config in configs if config.rank}) or list(_RANKS)
        ranks = {asked[0], asked[-1]} if len(asked) > 1 else {max(1, asked[0] // 4), asked[0]}
        return cls(clock, tuple(map(tuple, families.values())), sizes, tuple(sorted(ranks)))

    @property
    def rounds(self) -> list[Round]:
        """What is timed, the most telling first: all bits on all but the largest matrix, which is for one each."""
        *small, largest = self.sizes
        return [(size, family) for size in small for family in self.families] + [
            (largest, family[:1]) for family in self.families
        ]

    def warm_up(self) -> None:
        """Run every config once: numba compiles, tables are read."""
        for family in self.families:
            self.time((_WARM_UP, family))

    @exact_float32()
    @torch.no_grad()
    def time(self, round_: Round) -> list[Observation]:
        """The pieces of a family's configs on one matrix, in the order of a sweep."""
        (out_features, in_features), family = round_
        size, device, clock = Size(out_features, in_features), self.clock.device, self.clock
        w_OI, h_II = make_weight(out_features, in_features, device), make_hessian(in_features, device)
        found: list[Observation] = []
        of_input, seconds = clock.time(lambda: prepare_input(h_II, in_features, family[0].seed, device))
        found.append(Observation("input", size, seconds))
        context, seconds = clock.time(lambda: prepare_matrix(w_OI, h_II, family[0].seed, device, of_input))
        found.append(Observation("matrix", size, seconds))
        cells = _Cells(clock, context, Yardstick(context.raw_w_OI, context.hessian))
        if family[0].codebook in UNROTATED_CODEBOOKS:
            kind: Kind = "gptq" if family[0].codebook == "gptq" else "rtn"
            return found + [piece for config in family for piece in cells.time(kind, config)]
        block = Rounder.make(context.w_OI, family[0]).codebook.block
        _, seconds = clock.time(lambda: of_input.feedback(block))
        found.append(Observation("feedback", size, seconds, family[0].codebook))
        found += [piece for config in family for piece in cells.time("start", config)]
        for rank in self.ranks:
            cut = min(rank, out_features, in_features)
            found += [piece for config in family for piece in cells.time("rank", replace(config, rank=cut))]
        return found


@dataclass
class _Cells:
    """One matrix, prepared."""

    clock: Clock
    context: MatrixContext
    yardstick: Yardstick
    #: the first measuring also measures W itself
    first: bool = True

    def time(self, kind: Kind, config: CompressionConfig) -> list[Observation]:
        """Compressing, and telling the error."""
        size = Size(*self.context.shape, config.rank)
        compressed, seconds = self.clock.time(lambda: compress_prepared(self.context, config))
        if kind in ("start", "rank"):
            states = config.states if config.codebook == "trellis" else 0
            found = [Observation(kind, size, seconds, config.codebook, config.b_q, states)]
        else:
            found = [Observation(kind, size, seconds)]
        _, seconds = self.clock.time(lambda: self.yardstick.measure(compressed))
        if not self.first:
            found.append(Observation("measure", Size(*self.context.shape), seconds))
        self.first = False
        return found


def make_weight(out_features: int, in_features: int, device: torch.device) -> Tensor:
    """Gaussian, with a scale of its own for each row."""
    generator = torch.Generator().manual_seed(out_features + in_features)
    w_OI = torch.randn(out_features, in_features, generator=generator)
    w_OI *= 0.02 * torch.exp(0.4 * torch.randn(out_features, 1, generator=generator))
    return w_OI.to(device)


def make_hessian(width: int, device: torch.device) -> Tensor:
    """E[x xᵀ] of a few strong directions and noise."""
    generator = torch.Generator().manual_seed(width)
    f_IK = torch.randn(width, _DIRECTIONS, generator=generator) * torch.arange(1, _DIRECTIONS + 1) ** -0.6
    h_II = f_IK @ f_IK.T
    h_II.diagonal().add_(0.3 * torch.exp(torch.randn(width, generator=generator)))
    return h_II.to(device)
