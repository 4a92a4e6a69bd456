"""Routed experts as transformers holds them: the matrices of all experts of a layer in parameters of three dimensions.

On disk each expert has its own ``experts.E.gate_proj.weight`` (F, D), ``experts.E.up_proj.weight`` (F, D) and
``experts.E.down_proj.weight`` (D, F); the module ``experts`` has ``gate_up_proj`` (E, 2F, D), gate above up, and
``down_proj`` (E, D, F).

Shapes: T tokens, E experts, D hidden width, F width of an expert.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compress_core.errors import CheckpointError, UnsupportedArchitecture

#: parameter of an experts module -> the projections whose rows it holds for each expert, one after another
STACKED: dict[str, tuple[str, ...]] = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}
#: what transformers may say of an experts module, and what it must be for the layout above
_LAYOUT = {
    "has_gate": True,
    "has_bias": False,
    "has_post_expert_norm": False,
    "is_transposed": False,
    "is_concatenated": True,
}


def is_stacked(name: str, parameter: Tensor) -> bool:
    """Whether a parameter, by its name in the model, holds one projection or more of all experts of a layer."""
    parent, _, leaf = name.rpartition(".")
    return parameter.dim() == 3 and leaf in STACKED and parent.rpartition(".")[2] == "experts"


def check_experts(module: nn.Module) -> None:
    """Refuse a family whose experts compute something else than down(act(gate x) ∘ up x).

    Raises:
        UnsupportedArchitecture: names the module's class and what it does otherwise.
    """
    for field, expected in _LAYOUT.items():
        if getattr(module, field, None) is not expected:
            raise UnsupportedArchitecture(
                f"{type(module).__name__} has {field} = {getattr(module, field, None)}: routed experts of this layout "
                "are not supported"
            )


def stack_experts(
    name: str, parameter: Tensor, read: Callable[[str], Tensor], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The value of a stacked parameter, put together from the experts' own tensors, one of them in memory at a time.

    Args:
        name: of the parameter in the checkpoint's terms, e.g. ``model.layers.0.mlp.experts.gate_up_proj``.
        parameter: gives the shape (E, out, in); may be on the meta device.
        read: the tensor of a name in the checkpoint.

    Raises:
        CheckpointError: an expert's tensor has another shape; whatever ``read`` raises.
    """
    parent, _, leaf = name.rpartition(".")
    projections = STACKED[leaf]
    n_experts, out_features, in_features = parameter.shape
    rows = out_features // len(projections)
    stacked = torch.empty(parameter.shape, device=device, dtype=dtype)
    for expert in range(n_experts):
        for number, projection in enumerate(projections):
            own_name = f"{parent}.{expert}.{projection}_proj.weight"
            tensor = read(own_name)
            if tensor.shape != (rows, in_features):
                raise CheckpointError(
                    f"{own_name} has shape {list(tensor.shape)}, config.json asks for {[rows, in_features]}"
                )
            stacked[expert, number * rows : (number + 1) * rows].copy_(tensor)
    return stacked


def expert_view(module: nn.Module, expert: int, projection: str) -> Tensor:
    """One expert's matrix (out, in) as a view of an experts module's parameter."""
    leaf = next(leaf for leaf, projections in STACKED.items() if projection in projections)
    stacked: Tensor = getattr(module, leaf)
    rows = stacked.shape[1] // len(STACKED[leaf])
    first = STACKED[leaf].index(projection) * rows
    return stacked[expert, first : first + rows]


def expert_hidden(module: nn.Module, expert: int, x_TD: Tensor) -> Tensor:
    """What enters an expert's down projection, (T, F): act(gate x) ∘ up x, for tokens x of an experts module."""
    rows = module.get_parameter("gate_up_proj")[expert]
    hidden_TF: Tensor = module._apply_gate(nn.functional.linear(x_TD, rows))  # type: ignore[operator]
    return hidden_TF
