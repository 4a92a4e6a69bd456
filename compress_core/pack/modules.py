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

from compress_core.errors import PackedFormatError
from compress_core.matrix import MLP_PROJECTIONS
from compress_core.pack.description import PACKED_SUFFIX, ModelDescription, PackedMatrixInfo
from compress_core.pack.experts import PackedExperts
from compress_core.pack.fused import FusedLinear
from compress_core.pack.linear import CompressedLinear
from compress_core.pack.names import ModuleNames
from compress_core.stream.experts import STACKED

if TYPE_CHECKING:  # transformers is still being imported when the quantizer imports this file
    from transformers import PreTrainedModel

_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(gate|up|down)_proj$")


def put_packed_modules(model: PreTrainedModel, description: ModelDescription) -> None:
    """Replace the modules of all described matrices, before weights are loaded.

    Raises:
        PackedFormatError: a matrix has no place in the model, or another shape than the model's.
        UnsupportedArchitecture: experts that compute something else than ours.
    """
    names = ModuleNames(model)
    experts: dict[str, dict[tuple[int, str], PackedMatrixInfo]] = defaultdict(dict)
    fused = description.fused()
    of_fused = {part for parts in fused.values() for part in parts}
    for name, info in description.matrices.items():
        match = _EXPERT.match(name)
        if name in of_fused or not names.has_place(name):
            continue
        if match is not None and _is_stacked(names.module(match[1])):
            experts[match[1]][int(match[2]), match[3]] = info
        else:
            linear = _linear(names, name, name)
            _check_shape(name, info.shape, linear)
            model.set_submodule(names.path(name), _packed(info, linear.weight.device, linear.bias))
    for name, members in fused.items():
        linear = _linear(names, name, members[0])
        infos = {part.rpartition(".")[2]: description.matrices[part] for part in members}
        rows = sum(info.shape[0] for info in infos.values())
        for info in infos.values():
            _check_shape(name, (rows, info.shape[1]), linear)
        parts = {projection: _packed(info, linear.weight.device) for projection, info in infos.items()}
        model.set_submodule(names.path(name), FusedLinear(parts, linear.bias))
    for name, infos_of in experts.items():
        path = names.path(name)
        model.set_submodule(path, _packed_experts(name, model.get_submodule(path), infos_of))


def put_dense_modules(module: nn.Module, dtype: torch.dtype) -> None:
    """Decode every packed module below ``module``, one after another."""
    for name, child in list(module.named_children()):
        if isinstance(child, CompressedLinear | FusedLinear | PackedExperts):
            setattr(module, name, child.dequantized(dtype))
        else:
            put_dense_modules(child, dtype)


def _packed(info: PackedMatrixInfo, device: torch.device, bias: nn.Parameter | None = None) -> CompressedLinear:
    return CompressedLinear(info.config, info.shape[1], info.shape[0], bias=bias, device=device)


def _linear(names: ModuleNames, name: str, matrix: str) -> nn.Linear:
    module = names.module(name)
    if module is None:
        raise PackedFormatError(f"{matrix}{PACKED_SUFFIX} has no place in {names.model_name}")
    if not isinstance(module, nn.Linear):
        raise PackedFormatError(f"{matrix} is packed, but {type(module).__name__} is no linear layer")
    return module


def _check_shape(name: str, shape: tuple[int, ...], linear: nn.Linear) -> None:
    if (linear.out_features, linear.in_features) != shape:
        raise PackedFormatError(
            f"{name} is packed as {shape}, config.json makes it {linear.out_features, linear.in_features}"
        )


def _is_stacked(module: nn.Module | None) -> bool:
    """Whether a module holds all experts together, and is not a list of them."""
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
