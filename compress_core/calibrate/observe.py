"""Gather E[x xᵀ] of a layer's distinct inputs while the layer runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from compress_core.calibrate.inputs import input_name
from compress_core.calibrate.routed import RoutedInputs
from compress_core.calibrate.second_moment import SecondMoment
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.matrix import NO_EXPERT
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
        A moment for each input, in the order of the layer's matrices; complete once the block has ended, which must be
        before the layer is released. ``n_tokens`` says how many vectors each saw. The H of an expert that saw few leans
        on others' (see ``compress_core.calibrate.routed``); of one that saw none (``seen`` is false) it is these alone.

    Raises:
        UnsupportedArchitecture: transformers' layer has no such module, or experts of another kind.
    """
    moments: dict[str, SecondMoment] = {}
    handles = []
    routed: dict[nn.Module, RoutedInputs] = {}
    try:
        for spec in checkpoint.layer_matrices(layer_idx):
            name, expert = input_name(spec.key), spec.key.expert_idx
            if name in moments or (wanted is not None and name not in wanted):
                continue
            moments[name] = SecondMoment(spec.in_features, model.device)
            module = model.module_of(layer, spec)
            if expert == NO_EXPERT:
                handles.append(module.register_forward_pre_hook(_adder(moments[name])))
                continue
            if module not in routed:
                routed[module] = RoutedInputs(module)
                handles.append(module.register_forward_pre_hook(routed[module], with_kwargs=True))
            of_group = routed[module].down if spec.key.projection == "down" else routed[module].gate_up
            of_group[expert] = moments[name]
        yield moments
        for inputs in routed.values():
            inputs.finish()
    finally:
        for handle in handles:
            handle.remove()


def _adder(moment: SecondMoment) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        moment.add(inputs[0])

    return hook
