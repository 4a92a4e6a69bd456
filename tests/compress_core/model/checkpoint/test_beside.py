"""What lies beside the matrices is checked by headers alone: a norm of the last layer is needed hours later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress_core.checkpoint import check_checkpoint, open_checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.errors import CheckpointError, UnsupportedArchitecture
from compress_core.stream.model import StreamedModel

Change = Callable[[dict[str, Tensor]], None]
NORM = "model.layers.2.input_layernorm.weight"
BIAS = "model.layers.2.self_attn.k_proj.bias"


@pytest.fixture
def damage(qwen2: Path, tmp_path: Path) -> Callable[..., Path]:
    """``damage(change, model=qwen2, **config)``: a copy with other tensors, or another config."""

    def make(change: Change = lambda tensors: None, model: Path = qwen2, **config: object) -> Path:
        root = tmp_path / "damaged"
        shutil.copytree(model, root)
        tensors = load_file(root / "model.safetensors")
        change(tensors)
        save_file(tensors, root / "model.safetensors")
        values = json.loads((root / "config.json").read_text())
        (root / "config.json").write_text(json.dumps(values | config))
        return root

    return make


@pytest.mark.parametrize("name", [NORM, BIAS])
def test_a_parameter_that_one_layer_lacks(damage: Callable[..., Path], name: str) -> None:
    root = damage(lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"{name} is missing: other layers .* have one of shape"):
        check_checkpoint(root)


@pytest.mark.parametrize("name", [NORM, BIAS, "model.layers.0.self_attn.q_proj.bias"])
def test_a_parameter_of_another_shape(damage: Callable[..., Path], name: str) -> None:
    def lengthen(tensors: dict[str, Tensor]) -> None:
        tensors[name] = torch.ones(tensors[name].numel() + 1)

    with pytest.raises(CheckpointError, match=rf"{name} has shape \[\d+\]"):
        check_checkpoint(damage(lengthen))


def test_a_bias_that_fits_in_no_layer(damage: Callable[..., Path]) -> None:
    def lengthen(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: torch.ones(25) for name in tensors if name.endswith("k_proj.bias")})

    with pytest.raises(CheckpointError, match=r"0\.self_attn\.k_proj\.bias has shape \[25\].* ask for \[24\]"):
        check_checkpoint(damage(lengthen))


@pytest.mark.parametrize("name", [NORM, "model.embed_tokens.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [torch.ones(320, 48, dtype=torch.int8), torch.empty(320, 0)], ids=["int8", "empty"])
def test_a_parameter_without_values(damage: Callable[..., Path], name: str, value: Tensor) -> None:
    with pytest.raises(CheckpointError, match=rf"{name} has dtype \w+ and shape .*: expected values of BF16"):
        check_checkpoint(damage(lambda tensors: tensors.update({name: value})))


@pytest.mark.parametrize("shape", [(321, 48), (48, 320), (1, 320, 48), (320,)])
def test_a_head_of_another_shape(
    damage: Callable[..., Path], tiny_checkpoints: dict[str, Path], shape: tuple[int, ...]
) -> None:
    root = damage(
        lambda tensors: tensors.update({"lm_head.weight": torch.ones(shape)}), model=tiny_checkpoints["llama"]
    )
    with pytest.raises(CheckpointError, match=r"lm_head\.weight has shape .* asks for \[320, 48\]"):
        check_checkpoint(root)


def test_a_router_that_knows_other_experts(damage: Callable[..., Path], make_family: Callable[[str], Path]) -> None:
    name = "model.layers.1.mlp.gate.weight"
    root = damage(lambda tensors: tensors.update({name: torch.ones(6, 32)}), model=make_family("qwen3_moe"))
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[6, 32\].* ask for \[5, 32\]"):
        check_checkpoint(root)


@pytest.mark.parametrize("chosen", [0, 6])
def test_more_experts_chosen_than_there_are(
    damage: Callable[..., Path], make_family: Callable[[str], Path], chosen: int
) -> None:
    with pytest.raises(CheckpointError, match=rf"num_experts_per_tok = {chosen}: layer 0 has 5 experts"):
        check_checkpoint(damage(model=make_family("qwen3_moe"), num_experts_per_tok=chosen))


@pytest.mark.parametrize("number", ["01", "٠", "9" * 5000])
def test_numbers_that_no_module_list_has(damage: Callable[..., Path], number: str) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("model.layers.0.")]:
            tensors[name.replace(".0.", f".{number}.", 1)] = tensors.pop(name)

    with pytest.raises(UnsupportedArchitecture, match=r"layer model\.layers\.0 is missing"):
        check_checkpoint(damage(rename))


def test_other_tensors_of_a_layer_may_be_anything(damage: Callable[..., Path]) -> None:
    root = damage(lambda tensors: tensors.update({"model.layers.1.mask": torch.ones(3, dtype=torch.bool)}))
    assert open_checkpoint(root).n_layers == 3


def test_no_heads(damage: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="num_attention_heads = 0"):
        check_checkpoint(damage(num_attention_heads=0))


@pytest.mark.parametrize("config", [{"decoder_sparse_step": 0}, {"intermediate_size": "wide"}])
def test_what_transformers_cannot_build_is_named(
    damage: Callable[..., Path], make_family: Callable[[str], Path], config: dict[str, object]
) -> None:
    checkpoint = open_checkpoint(damage(model=make_family("qwen3_moe"), **config))
    with pytest.raises(CheckpointError, match="transformers cannot build the model"):
        StreamedModel(DenseWeights(checkpoint))
