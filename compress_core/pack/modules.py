"""Which modules of a transformers model become packed ones, and how they become dense again.

A linear layer becomes a CompressedLinear; one that several matrices are fused in a FusedLinear; a module that holds all
experts of a layer in stacked parameters a PackedExperts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import nn

from compress_core.checkpoint.checkpoint import HEAD_TENSOR
from compress_core.errors import PackedFormatError
from compress_core.matrix import MLP_PROJECTIONS
from compress_core.pack.description import PACKED_SUFFIX, ModelDescription, PackedMatrixInfo
from compress_core.pack.experts import PackedExperts
from compress_core.pack.fused import FusedLinear
from compress_core.pack.linear import CompressedLinear
from compress_core.stream.experts import STACKED

if TYPE_CHECKING:  # transformers is still being imported when the quantizer imports this file
    from transformers import PreTrainedModel

_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(gate|up|down)_proj$")
_HEAD = HEAD_TENSOR.removesuffix(".weight")


def put_packed_modules(model: PreTrainedModel, description: ModelDescription) -> None:
    """Replace the modules of all described matrices, before weights are loaded.

    Raises:
        PackedFormatError: a matrix has no place in the model, or another shape than the model's.
        UnsupportedArchitecture: experts that compute something else than ours.
    """
    experts: dict[str, dict[tuple[int, str], PackedMatrixInfo]] = defaultdict(dict)
    fused = description.fused()
    of_fused = {name for names in fused.values() for name in names}
    for name, info in description.matrices.items():
        match = _EXPERT.match(name)
        if name in of_fused or not has_place(model, name):
            continue
        if match is not None and _is_stacked(model, match[1]):
            experts[match[1]][int(match[2]), match[3]] = info
        else:
            linear = _linear(model, name, name)
            _check_shape(name, info.shape, linear)
            _put(model, name, _packed(info, linear.weight.device, linear.bias))
    for name, names in fused.items():
        linear = _linear(model, name, names[0])
        infos = {part.rpartition(".")[2]: description.matrices[part] for part in names}
        rows = sum(info.shape[0] for info in infos.values())
        for info in infos.values():
            _check_shape(name, (rows, info.shape[1]), linear)
        parts = {projection: _packed(info, linear.weight.device) for projection, info in infos.items()}
        _put(model, name, FusedLinear(parts, linear.bias))
    for name, infos_of in experts.items():
        _put(model, name, _packed_experts(name, model.get_submodule(name_in(model, name)), infos_of))


def put_dense_modules(module: nn.Module, dtype: torch.dtype) -> None:
    """Decode every packed module below ``module``, one after another."""
    for name, child in list(module.named_children()):
        if isinstance(child, CompressedLinear | FusedLinear | PackedExperts):
            setattr(module, name, child.dequantized(dtype))
        else:
            put_dense_modules(child, dtype)


def has_place(model: PreTrainedModel, name: str) -> bool:
    """Whether a matrix belongs into this model: the head does not where the decoder alone is loaded (AutoModel)."""
    return name != _HEAD or hasattr(model, _HEAD)


def name_in(model: PreTrainedModel, name: str) -> str:
    """The module's name in ``model``: either this or what was saved may be the decoder without its head (AutoModel)."""
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or name == _HEAD:
        return name
    bare = name.removeprefix(f"{prefix}.")
    return f"{prefix}.{bare}" if hasattr(model, prefix) else bare


def _put(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    model.set_submodule(name_in(model, name), module)


def _packed(info: PackedMatrixInfo, device: torch.device, bias: nn.Parameter | None = None) -> CompressedLinear:
    return CompressedLinear(info.config, info.shape[1], info.shape[0], bias=bias, device=device)


def _linear(model: PreTrainedModel, name: str, matrix: str) -> nn.Linear:
    try:
        module = model.get_submodule(name_in(model, name))
    except AttributeError as error:
        raise PackedFormatError(f"{matrix}{PACKED_SUFFIX} has no place in {type(model).__name__}") from error
    if not isinstance(module, nn.Linear):
        raise PackedFormatError(f"{matrix} is packed, but {type(module).__name__} is no linear layer")
    return module


def _check_shape(name: str, shape: tuple[int, ...], linear: nn.Linear) -> None:
    if (linear.out_features, linear.in_features) != shape:
        raise PackedFormatError(
            f"{name} is packed as {shape}, config.json makes it {linear.out_features, linear.in_features}"
        )


def _is_stacked(model: PreTrainedModel, name: str) -> bool:
    """Whether the model has a module there that holds all experts together, not a list of them."""
    try:
        module = model.get_submodule(name_in(model, name))
    except AttributeError:
        return False
    return all(isinstance(getattr(module, leaf, None), nn.Parameter) for leaf in STACKED)


def _packed_experts(name: str, original: nn.Module, infos: dict[tuple[int, str], PackedMatrixInfo]) -> PackedExperts:
    n_experts, wide, hidden = original.get_parameter("gate_up_proj").shape
    shapes = {"gate": (wide // 2, hidden), "up": (wide // 2, hidden), "down": (hidden, wide // 2)}
    if {expert for expert, _ in infos} != set(range(n_experts)) or len(infos) != n_experts * len(MLP_PROJECTIONS):
        raise PackedFormatError(
            f"{name} is packed as {len(infos)} matrices, config.json makes it {n_experts} experts of three each"
        )
    for (expert, projection), info in infos.items():
        if info.shape != shapes[projection]:
            raise PackedFormatError(
                f"{name}.{expert}.{projection}_proj is packed as {info.shape}, "
                f"config.json makes it {shapes[projection]}"
            )
    device = original.get_parameter("gate_up_proj").device
    packed = [{p: _packed(infos[expert, p], device) for p in MLP_PROJECTIONS} for expert in range(n_experts)]
    return PackedExperts(original, packed)
