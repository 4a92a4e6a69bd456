"""Seconds of the pieces of sweep cells on small matrices, from which those of large ones are told.

The pieces are the ones that a sweep shares in different ways (``compress_core.plan.operations``): what belongs to an
input, to a matrix, to a codebook and its bits, to a rank.

Shapes: O = out_features, I = in_features. w_OI, h_II.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress_core.config import BASELINE_CODEBOOKS, CompressionConfig
from compress_core.context import InputContext, MatrixContext, prepare_input, prepare_matrix
from compress_core.decompose import compress_prepared
from compress_core.plan.operations import Kind, Size
from compress_core.plan.rates import Observation
from compress_core.precision import exact_float32
from compress_core.probe.clock import Clock
from compress_core.rounding import Rounder
from compress_core.sweep import measure

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


@dataclass(frozen=True)
class CellProbe:
    """Times the pieces of some configs on one device."""

    clock: Clock
    configs: tuple[CompressionConfig, ...]
    sizes: tuple[tuple[int, int], ...]
    ranks: tuple[int, ...] = _RANKS

    @classmethod
    def of(cls, clock: Clock, configs: Sequence[CompressionConfig]) -> CellProbe:
        """The codebooks, bits and states of these configs; their ranks, the least and the largest."""
        plain = {replace(config, rank=0): None for config in configs}
        ranks = sorted({config.rank for config in configs if config.rank}) or list(_RANKS)
        sizes = _SIZES[clock.device.type]
        most = min(min(size) for size in sizes[:1])
        ranks = sorted({min(rank, most // 2) for rank in (ranks[0], ranks[-1])})
        return cls(clock, tuple(plain), sizes, tuple(ranks if len(ranks) > 1 else [max(1, ranks[0] // 4), ranks[0]]))

    @property
    def rounds(self) -> list[tuple[tuple[int, int], CompressionConfig]]:
        """What is timed, the most telling first: all bits on the smaller sizes, the largest one for each codebook."""
        largest = self.sizes[-1]
        once = {config.codebook: config for config in reversed(self.configs)}
        most = [(size, config) for size in self.sizes[:-1] for config in self.configs]
        return most + [(largest, config) for config in once.values()]

    def warm_up(self) -> None:
        """Run every config once: numba compiles, tables are read."""
        for config in self.configs:
            list(self.time(_WARM_UP, config))

    @exact_float32()
    @torch.no_grad()
    def time(self, size: tuple[int, int], config: CompressionConfig) -> Iterator[Observation]:
        """The pieces of one config on one matrix."""
        w_OI, h_II = make_weight(*size, self.clock.device), make_hessian(size[1], self.clock.device)
        of_input, seconds = self.clock.time(lambda: prepare_input(h_II, size[1], config.seed, self.clock.device))
        yield Observation("input", Size(*size), seconds)
        context, seconds = self.clock.time(lambda: prepare_matrix(w_OI, h_II, config.seed, self.clock.device, of_input))
        yield Observation("matrix", Size(*size), seconds)
        if config.codebook in (*BASELINE_CODEBOOKS, "raw"):
            kind: Kind = "gptq" if config.codebook == "gptq" else "rtn"
            yield from self._cell(kind, context, config)
            return
        yield self._feedback(context, of_input, config)
        yield from self._cell("start", context, config)
        for rank in self.ranks:
            yield from self._cell("rank", context, replace(config, rank=min(rank, *size)))

    def _feedback(self, context: MatrixContext, of_input: InputContext, config: CompressionConfig) -> Observation:
        block = Rounder.make(context.w_OI, config).codebook.block
        _, seconds = self.clock.time(lambda: of_input.feedback(block))
        return Observation("feedback", Size(*context.shape), seconds, config.codebook)

    def _cell(self, kind: Kind, context: MatrixContext, config: CompressionConfig) -> Iterator[Observation]:
        """Compressing, and telling the error."""
        size = Size(*context.shape, config.rank)
        compressed, seconds = self.clock.time(lambda: compress_prepared(context, config))
        if kind in ("start", "rank"):
            states = config.states if config.codebook == "trellis" else 0
            yield Observation(kind, size, seconds, config.codebook, config.b_q, states)
        else:
            yield Observation(kind, size, seconds)
        _, seconds = self.clock.time(lambda: measure(context.raw_w_OI, context.hessian, compressed))
        yield Observation("measure", Size(*context.shape), seconds)


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
