"""Every family streams: logits as transformers computes them with the whole model in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, Glm4MoeConfig

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights, read_matrix
from compress_core.errors import UnsupportedArchitecture
from compress_core.progress import silent
from compress_core.stream.experts import check_experts
from compress_core.stream.hidden import run_all
from compress_core.stream.model import StreamedModel
from compress_core.text.tokens import TokenWindows


def test_logits_equal_from_pretrained(family: Path, random_windows: Callable[..., TokenWindows]) -> None:
    _compare(family, random_windows)


def _compare(family: Path, random_windows: Callable[..., TokenWindows]) -> None:
    windows = random_windows(3, 17)  # longer than the sliding windows
    model = StreamedModel(DenseWeights(open_checkpoint(family)))
    hidden = run_all(model, windows.ids, silent, batch_tokens=2 * windows.length)
    logits = model.logits(hidden.reshape(-1, model.hidden_size)).reshape(*windows.ids.shape, -1)
    whole = AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32, local_files_only=True)
    with torch.no_grad():
        expected = whole(torch.from_numpy(windows.ids).long()).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_each_matrix_is_found_in_the_loaded_layer(family: Path) -> None:
    checkpoint = open_checkpoint(family)
    model = StreamedModel(DenseWeights(checkpoint))
    for layer_idx in range(model.n_layers):
        with model.layer(layer_idx) as layer:
            places = set()
            for spec in checkpoint.layer_matrices(layer_idx):
                view_OI = model.weight_view(layer, spec)
                assert torch.equal(view_OI, read_matrix(checkpoint, spec).float())
                places.add(view_OI.data_ptr())
            assert len(places) == len(checkpoint.layer_matrices(layer_idx))
        assert all(parameter.is_meta for parameter in layer.parameters())


def test_a_layer_is_read_once_and_its_experts_one_by_one(make_family: Callable[[str], Path]) -> None:
    read: list[str] = []

    class Watched(DenseWeights):
        def tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return super().tensor(name)

    checkpoint = open_checkpoint(make_family("qwen2_moe"))
    model = StreamedModel(Watched(checkpoint))
    read.clear()
    with model.layer(1):
        pass
    assert sorted(read) == sorted(name for name in checkpoint.tensors if name.startswith("model.layers.1."))


@pytest.mark.parametrize("field", ["is_transposed", "has_bias"])
def test_experts_of_another_kind_are_refused(make_family: Callable[[str], Path], field: str) -> None:
    checkpoint = open_checkpoint(make_family("qwen3_moe"))
    model = StreamedModel(DenseWeights(checkpoint))
    with model.layer(0) as layer:
        experts = model.module_of(layer, checkpoint.layer_matrices(0)[-1])
        check_experts(experts)
        setattr(experts, field, True)
        with pytest.raises(UnsupportedArchitecture, match=f"Qwen3MoeExperts has {field} = True"):
            check_experts(experts)


def test_the_decoder_of_a_multimodal_model(tmp_path: Path, random_windows: Callable[..., TokenWindows]) -> None:
    """Its layers are stored under another name than the decoder alone has; the vision tower stays as it is."""
    decoder = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=decoder | {"num_key_value_heads": 2, "head_dim": 12, "vocab_size": 320, "initializer_range": 0.15},
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.layout.prefix == "language_model.model.layers"
    assert len(checkpoint.matrices()) == 14
    assert any(tensor.name.startswith("vision_tower.") for tensor in checkpoint.other_tensors)
    _compare(tmp_path, random_windows)


def test_a_router_with_a_stored_bias(tmp_path: Path, random_windows: Callable[..., TokenWindows]) -> None:
    """GLM-4-MoE: the first layer dense, a shared expert, and a buffer that is no parameter but decides the routes."""
    config = Glm4MoeConfig(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=320,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        n_shared_experts=1,
        first_k_dense_replace=1,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    bias = model.get_buffer("model.layers.1.mlp.gate.e_score_correction_bias")
    bias.copy_(torch.tensor([0.5, -0.5, 0.5, 0.0]))
    model.save_pretrained(tmp_path)
    keys = [str(spec.key) for spec in open_checkpoint(tmp_path).layer_matrices(1)]
    assert keys[4:10] == ["1.gate", "1.up", "1.down", "1.gate.0", "1.up.0", "1.down.0"]
    _compare(tmp_path, random_windows)
