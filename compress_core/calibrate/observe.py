"""Gather E[x xᵀ] of a layer's distinct inputs while the layer runs.

Shapes: T tokens, I = in_features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compress_core.calibrate.inputs import input_name
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.stream.model import StreamedModel


class SecondMoment:
    """E[x xᵀ]: float32 products of chunks, added up in float64 (a float64 GEMM is 1:64 on consumer cards)."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum_II = torch.zeros((width, width), dtype=torch.float64, device=device)
        #: vectors that were added
        self.n_tokens = 0

    def add(self, x: Tensor) -> None:
        """Add the vectors of x (…, width)."""
        x_TI = x.reshape(-1, x.shape[-1]).float()
        self._sum_II += x_TI.T @ x_TI
        self.n_tokens += x_TI.shape[0]

    def mean(self) -> Tensor:
        """H as exactly symmetric (width, width) float32 on the CPU."""
        mean_II = self._sum_II / self.n_tokens
        return ((mean_II + mean_II.T) / 2).float().cpu()


@contextmanager
def observe(
    checkpoint: Checkpoint,
    model: StreamedModel,
    layer: nn.Module,
    layer_idx: int,
    wanted: Collection[str] | None = None,
) -> Iterator[dict[str, SecondMoment]]:
    """Inside the block, whatever runs through a loaded layer is added to the second moments of its inputs.

    Args:
        wanted: names of inputs (see ``input_name``) to gather; None = every one that a matrix of the layer reads.

    Yields:
        A moment for each input, in the order of the layer's matrices; complete once the block ends.
    """
    moments: dict[str, SecondMoment] = {}
    handles = []
    prefix = f"{checkpoint.layout.prefix}.{layer_idx}."
    for spec in checkpoint.layer_matrices(layer_idx):
        name = input_name(spec.key)
        if name in moments or (wanted is not None and name not in wanted):
            continue
        moments[name] = SecondMoment(spec.in_features, model.device)
        module = layer.get_submodule(spec.module_name.removeprefix(prefix))
        handles.append(module.register_forward_pre_hook(_adder(moments[name])))
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


def _adder(moment: SecondMoment) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        moment.add(inputs[0])

    return hook
