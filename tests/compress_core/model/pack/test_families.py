"""Every family packed and read back: fused matrices, stacked experts, shared experts, dense layers between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights, read_matrix
from compress_core.config import CompressionConfig
from compress_core.errors import PackedFormatError
from compress_core.evaluate.perplexity import evaluate_perplexity
from compress_core.matrix import MatrixKey
from compress_core.pack import CompressedLinear, PackedModel, write_packed_model
from compress_core.pack.experts import PackedExperts
from compress_core.pack.fused import FusedLinear
from compress_core.text.tokens import TokenWindows

RAW = CompressionConfig(b_q=16, codebook="raw")
E8 = CompressionConfig(b_q=2, codebook="e8")
#: in one process, which packs each family once
pytestmark = pytest.mark.xdist_group("families")


@pytest.fixture
def ids(random_windows: Callable[..., TokenWindows]) -> torch.Tensor:
    return torch.from_numpy(random_windows(2, 12).ids).long()


def _load(path: Path, **options: object) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(
        path, **{"dtype": torch.float32, "output_loading_info": True, **options}
    )
    assert {name: found for name, found in info.items() if found} == {}
    return model


def _logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def _bfloat16(path: Path, out: Path) -> Path:
    """The checkpoint with 16-bit weights, which raw stores without loss."""
    AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(out)
    return out


def _pack(path: Path, out: Path, config: CompressionConfig, **options: int) -> PackedModel:
    checkpoint = open_checkpoint(path)
    items = {spec.key: config for spec in checkpoint.matrices()}
    assert write_packed_model(checkpoint, None, items, out, **options).exact
    return PackedModel.open(out)


@pytest.fixture(scope="module")
def pack_e8(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], PackedModel]:
    """A checkpoint packed with E8; once, whoever asks."""
    root = tmp_path_factory.mktemp("e8")

    @cache
    def pack(path: Path) -> PackedModel:
        return _pack(path, root / path.name, E8)

    return pack


def test_a_lossless_round_trip_changes_no_forward_pass(
    family: Path, ids: torch.Tensor, random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    path = _bfloat16(family, tmp_path / "source")
    checkpoint = open_checkpoint(path)
    packed = _pack(path, tmp_path / "packed", RAW)
    assert packed.keys() == tuple(spec.key for spec in checkpoint.matrices())
    for spec in checkpoint.matrices():
        assert torch.equal(packed.weight(spec.key), read_matrix(checkpoint, spec).float())
    dense = DenseWeights(checkpoint)
    for name in checkpoint.tensors:
        assert torch.equal(packed.tensor(name), dense.tensor(name).to(packed.tensor(name).dtype)), name
    windows = random_windows(2, 12)
    streamed = evaluate_perplexity(packed, windows).nll
    np.testing.assert_array_equal(streamed, evaluate_perplexity(dense, windows).nll)
    original = _logits(_load(path, experts_implementation="eager"), ids)
    loaded = _load(packed.path, experts_implementation="eager")
    torch.testing.assert_close(_logits(loaded, ids), original, rtol=1e-6, atol=1e-6)
    assert torch.equal(_logits(_load(packed.path, dequantize=True, experts_implementation="eager"), ids), original)


def test_two_bits_are_those_of_the_dequantised_model(
    family: Path, ids: torch.Tensor, pack_e8: Callable[[Path], PackedModel]
) -> None:
    packed = pack_e8(family)
    dense = _load(packed.path, dequantize=True)
    assert not any(isinstance(m, CompressedLinear | FusedLinear | PackedExperts) for m in dense.modules())
    expected = _logits(dense, ids)
    on_the_fly = _load(packed.path)
    packed_bytes = sum(b.nbytes for name, b in on_the_fly.named_buffers() if name.endswith(".packed"))
    assert packed_bytes == sum(packed.matrix(key).nbytes for key in packed.keys())  # noqa: SIM118
    torch.testing.assert_close(_logits(on_the_fly, ids), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, _logits(_load(family), ids), rtol=1e-2)


@pytest.mark.parametrize("shard_size", ["50GB", "20kB"])
def test_saved_again_it_loads_bit_equal(
    unusual_family: Path, ids: torch.Tensor, tmp_path: Path, shard_size: str, pack_e8: Callable[[Path], PackedModel]
) -> None:
    packed = pack_e8(unusual_family)
    model = _load(packed.path)
    model.save_pretrained(tmp_path / "again", max_shard_size=shard_size)
    again = PackedModel.open(tmp_path / "again")
    assert again.keys() == packed.keys()
    assert all(torch.equal(again.weight(key), packed.weight(key)) for key in packed.keys())  # noqa: SIM118
    assert torch.equal(_logits(_load(tmp_path / "again"), ids), _logits(model, ids))
    model.dequantize().save_pretrained(tmp_path / "dense")
    written = open_checkpoint(tmp_path / "dense")
    for spec in open_checkpoint(unusual_family).matrices():
        assert torch.equal(read_matrix(written, written.matrix(spec.key)), packed.weight(spec.key))


def test_matrices_are_named_by_module_and_projection(make_family: Callable[[str], Path], tmp_path: Path) -> None:
    phi3 = _pack(make_family("phi3"), tmp_path / "phi3", RAW)
    names = set(phi3._tensors)
    assert {"model.layers.0.self_attn.qkv_proj.q.packed", "model.layers.1.mlp.gate_up_proj.up.packed"} <= names
    assert phi3.tensor("model.layers.0.self_attn.qkv_proj.weight").shape == (64, 32)
    moe = _pack(make_family("qwen2_moe"), tmp_path / "moe", RAW)
    assert {
        "model.layers.0.mlp.gate_proj.packed",
        "model.layers.1.mlp.experts.3.gate_proj.packed",
        "model.layers.1.mlp.shared_expert.gate_proj.packed",
        "model.layers.1.mlp.gate.weight",
    } <= set(moe._tensors)
    assert moe.weight(MatrixKey(1, "down", 4)).shape == (32, 24)
    assert moe.weight(MatrixKey(1, "down")).shape == (32, 36)


def test_experts_that_do_not_fit_are_named(make_family: Callable[[str], Path], tmp_path: Path) -> None:
    packed = _pack(make_family("qwen3_moe"), tmp_path / "packed", RAW)
    path = packed.path / "config.json"
    config = json.loads(path.read_text())
    for field, value, message in (
        ("num_local_experts", 6, r"is packed as 15 matrices, config\.json makes it 6 experts"),
        ("moe_intermediate_size", 20, r"gate_proj is packed as \(24, 32\), config\.json makes it \(20, 32\)"),
    ):
        assert config[field] != value
        path.write_text(json.dumps(config | {field: value}))
        with pytest.raises(PackedFormatError, match=message):
            AutoModelForCausalLM.from_pretrained(packed.path)


def test_a_multimodal_model_keeps_what_is_not_its_decoder(
    ids: torch.Tensor, random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    text = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "sliding_window": 7}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    vision = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text | heads,
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        image_token_index=317,
        boi_token_index=318,
        eoi_token_index=319,
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(tmp_path / "source")
    packed = _pack(tmp_path / "source", tmp_path / "packed", RAW)
    dense = DenseWeights(open_checkpoint(tmp_path / "source"))
    windows = random_windows(2, 12)
    np.testing.assert_array_equal(evaluate_perplexity(packed, windows).nll, evaluate_perplexity(dense, windows).nll)
    ids = ids.clamp(max=316)
    model = _load(packed.path)
    assert torch.equal(_logits(model, ids), _logits(_load(tmp_path / "source"), ids))
    model.save_pretrained(tmp_path / "again")
    again = PackedModel.open(tmp_path / "again")
    assert again.layers_prefix == packed.layers_prefix
    assert again.keys() == packed.keys()
    assert torch.equal(_logits(_load(again.path), ids), _logits(model, ids))
