"""Gather E[x xᵀ] of a layer's distinct inputs while the layer runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from compress_core.calibrate.inputs import input_name
from compress_core.calibrate.second_moment import SecondMoment
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.stream.model import StreamedModel


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
