"""Matrices are found by structure in every family; what is missing, doubled or disagrees is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress_core.checkpoint import check_checkpoint, open_checkpoint
from compress_core.checkpoint.headers import TensorHeader
from compress_core.checkpoint.layout import check_config, find_layout
from compress_core.checkpoint.read import read_matrix, read_tensor
from compress_core.errors import CheckpointError, UnsupportedArchitecture
from compress_core.matrix import PROJECTIONS, MatrixKey

MLP = ("gate", "up", "down")


@pytest.fixture
def copy_of(make_family: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a family's checkpoint that a test may damage."""
    return lambda name: Path(shutil.copytree(make_family(name), tmp_path / name))


def _edit(root: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(root / "model.safetensors")
    change(tensors)
    save_file(tensors, root / "model.safetensors")


def _edit_config(root: Path, **changes: object) -> None:
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | changes))


def _expected_keys(name: str) -> list[MatrixKey]:
    keys = []
    for layer_idx in range(2):
        has_experts = name == "qwen3_moe" or (name, layer_idx) == ("qwen2_moe", 1)
        plain = PROJECTIONS if name != "qwen3_moe" else ("q", "k", "v", "o")
        keys += [MatrixKey(layer_idx, projection) for projection in plain]
        keys += [MatrixKey(layer_idx, p, expert) for expert in range(5 if has_experts else 0) for p in MLP]
    return keys


def test_every_matrix_is_found_and_every_byte_counted(family: Path) -> None:
    checkpoint = open_checkpoint(family)
    specs = checkpoint.matrices()
    assert [spec.key for spec in specs] == _expected_keys(family.name)
    assert len({spec.name for spec in specs}) == len(specs)
    assert [spec for layer_idx in range(2) for spec in checkpoint.layer_matrices(layer_idx)] == list(specs)
    data = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    assert checkpoint.matrix_bytes + checkpoint.other_bytes == data
    for spec in specs:
        assert checkpoint.matrix(spec.key) == spec
        assert read_matrix(checkpoint, spec).shape == (spec.out_features, spec.in_features)
        assert checkpoint.stored_nbytes(spec) == 4 * spec.n_weights


def test_routers_norms_and_biases_stay(make_family: Callable[[str], Path]) -> None:
    others = {tensor.name for tensor in open_checkpoint(make_family("qwen2_moe")).other_tensors}
    assert {f"model.layers.1.{tail}" for tail in ("mlp.gate.weight", "mlp.shared_expert_gate.weight")} < others
    assert {"model.layers.0.self_attn.q_proj.bias", "model.norm.weight", "lm_head.weight"} < others
    others = {tensor.name for tensor in open_checkpoint(make_family("qwen3")).other_tensors}
    assert "model.layers.0.self_attn.q_norm.weight" in others


def test_fused_rows_are_those_of_transformers(make_family: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(make_family("phi3"))
    fused = {spec.key.projection: spec.rows for spec in checkpoint.layer_matrices(1)}
    assert fused == {
        "q": (0, 32),
        "k": (32, 48),
        "v": (48, 64),
        "o": None,
        "gate": (0, 40),
        "up": (40, 80),
        "down": None,
    }
    up = checkpoint.matrix(MatrixKey(1, "up"))
    assert up.name == "model.layers.1.mlp.gate_up_proj.up"
    assert torch.equal(read_matrix(checkpoint, up), read_tensor(checkpoint.tensors[up.tensor_name])[40:])


@pytest.mark.parametrize(
    ("name", "tail", "message"),
    [
        ("phi3", "0.self_attn.qkv_proj.weight", r"'q' not found.*\*\.q_proj\.weight.*mlp\.gate_up_proj\.weight"),
        ("qwen3", "1.mlp.up_proj.weight", r"'up' not found: no tensor model\.layers\.1"),
        ("qwen2_moe", "0.mlp.up_proj.weight", r"'up' not found: no tensor model\.layers\.0"),
        ("qwen2_moe", "1.mlp.shared_expert.down_proj.weight", r"'down' not found.*experts\.N\.down_proj"),
        ("qwen3_moe", "1.mlp.experts.2.up_proj.weight", r"'up' not found: no tensor .*experts\.2\.up_proj\.weight"),
    ],
)
def test_a_missing_matrix_is_named(copy_of: Callable[[str], Path], name: str, tail: str, message: str) -> None:
    root = copy_of(name)
    _edit(root, lambda tensors: tensors.pop(f"model.layers.{tail}"))
    with pytest.raises(UnsupportedArchitecture, match=message):
        check_checkpoint(root)


def test_a_missing_last_expert_is_named(copy_of: Callable[[str], Path]) -> None:
    root = copy_of("qwen3_moe")
    names = [f"model.layers.0.mlp.experts.4.{projection}_proj.weight" for projection in MLP]
    _edit(root, lambda tensors: [tensors.pop(name) for name in names])
    with pytest.raises(CheckpointError, match=r"layers\.0 has 4 experts, config\.json asks for 5"):
        check_checkpoint(root)


def test_two_matrices_for_one_place(copy_of: Callable[[str], Path]) -> None:
    root = copy_of("olmo2")
    _edit(root, lambda tensors: tensors.update({"model.layers.0.adapter.q_proj.weight": torch.ones(32, 32)}))
    with pytest.raises(UnsupportedArchitecture, match=r"'q' is there twice in model\.layers\.0 \(adapter\.q_proj"):
        check_checkpoint(root)


def test_experts_in_one_tensor_are_refused(copy_of: Callable[[str], Path]) -> None:
    def stack(tensors: dict[str, torch.Tensor]) -> None:
        names = sorted(name for name in tensors if ".0.mlp.experts." in name)
        for name in names:
            del tensors[name]
        tensors["model.layers.0.mlp.experts.gate_up_proj"] = torch.ones(5, 48, 32)
        tensors["model.layers.0.mlp.experts.down_proj"] = torch.ones(5, 32, 24)

    root = copy_of("qwen3_moe")
    _edit(root, stack)
    with pytest.raises(
        UnsupportedArchitecture, match=r"experts\.down_proj holds all experts in one tensor: expected one"
    ):
        check_checkpoint(root)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("phi3", {"num_key_value_heads": 4}, r"qkv_proj\.weight has 64 rows, config\.json asks for 32 \+ 32 \+ 32"),
        ("phi3", {"num_attention_heads": None}, "does not say how many rows"),
        ("phi3", {"intermediate_size": 44}, r"gate_up_proj\.gate has shape \[40, 32\].*\[44, 32\]"),
        ("gemma2", {"head_dim": 16}, r"q_proj has shape \[48, 32\]"),
        ("qwen3", {"hidden_size": "32"}, "hidden_size = '32': expected a whole number"),
        ("qwen2_moe", {"moe_intermediate_size": 20}, r"experts\.0\.gate_proj has shape \[24, 32\]"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 20}, r"shared_expert\.gate_proj has shape \[36, 32\]"),
        ("qwen2_moe", {"intermediate_size": 44}, r"layers\.0\.mlp\.gate_proj has shape \[40, 32\]"),
        ("qwen2_moe", {"mlp_only_layers": []}, r"layers\.0 has 0 experts, config\.json asks for 5"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"layers\.1 has 5 experts, config\.json asks for 0"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, r"layers\.0 has 5 experts, config\.json asks for 0"),
        ("qwen3_moe", {"num_experts": 6}, r"layers\.0 has 5 experts, config\.json asks for 6"),
    ],
)
def test_a_config_that_disagrees(
    copy_of: Callable[[str], Path], name: str, changes: dict[str, object], message: str
) -> None:
    root = copy_of(name)
    _edit_config(root, **changes)
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(root)


def test_unknown_matrices_are_told_what_there_is(make_family: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(make_family("qwen2_moe"))
    for key, message in [
        (MatrixKey(2, "q"), "no matrix 2.q: it has 2 layers"),
        (MatrixKey(0, "up", 1), "layer 0 has no experts"),
        (MatrixKey(1, "up", 5), "layer 1 has 5 experts"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            checkpoint.matrix(key)
    with pytest.raises(CheckpointError, match="5 experts, numbered from 0 and no matrix beside them"):
        open_checkpoint(make_family("qwen3_moe")).matrix(MatrixKey(0, "up"))


def test_layers_may_differ() -> None:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (9, 8)}
    for i, width in enumerate((16, 24)):
        shapes |= {f"model.layers.{i}.self_attn.{p}_proj.weight": (8, 8) for p in ("q", "k", "v", "o")}
        shapes |= {f"model.layers.{i}.mlp.{p}_proj.weight": (width, 8) for p in ("gate", "up")}
        shapes[f"model.layers.{i}.mlp.down_proj.weight"] = (8, width)
    config = {"num_hidden_layers": 2, "intermediate_size": [16, 24]}
    layout = find_layout(config, _headers(shapes))
    assert [spec.in_features for spec in layout.matrices if spec.key.projection == "down"] == [16, 24]
    check_config(config, layout, _headers(shapes))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.gate_proj has shape \[24, 8\]"):
        check_config(config | {"intermediate_size": [16, 20]}, layout, _headers(shapes))


def test_the_decoder_of_a_multimodal_config() -> None:
    shapes = {"model.embed_tokens.weight": (9, 8), "vision.layers.0.q_proj.weight": (4, 4)}
    for p in PROJECTIONS:
        shapes[f"model.layers.0.x.{p}_proj.weight"] = (8, 8)
    nested = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 9}
    layout = find_layout({"text_config": nested, "hidden_size": 4}, _headers(shapes))
    check_config({"text_config": nested, "hidden_size": 4}, layout, _headers(shapes))
    with pytest.raises(CheckpointError, match="num_hidden_layers = 2"):
        check_config({"text_config": nested | {"num_hidden_layers": 2}}, layout, _headers(shapes))


def test_thousands_of_experts() -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(8):
        shapes |= {f"model.layers.{i}.self_attn.{p}_proj.weight": (8, 8) for p in ("q", "k", "v", "o")}
        for e in range(512):
            shapes |= {f"model.layers.{i}.mlp.experts.{e}.{p}_proj.weight": (4, 8) for p in ("gate", "up")}
            shapes[f"model.layers.{i}.mlp.experts.{e}.down_proj.weight"] = (8, 4)
    layout = find_layout({}, _headers(shapes))
    assert len(layout.matrices) == 8 * (4 + 3 * 512)
    # numbers, not strings, order experts: 2 comes before 10
    assert [spec.key.expert_idx for spec in layout.matrices[4:40:3]] == list(range(12))


def _headers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorHeader]:
    return {name: TensorHeader(name, "F32", shape, Path("x"), 0, 0) for name, shape in shapes.items()}
