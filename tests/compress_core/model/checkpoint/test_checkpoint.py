"""Opening checkpoints: structure, bytes, fingerprint; and every bad input by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from compress_core.checkpoint import check_checkpoint, open_checkpoint
from compress_core.errors import CheckpointError, UnsupportedArchitecture
from compress_core.matrix import PROJECTIONS, MatrixKey


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral"])
def test_finds_the_seven_projections_of_every_layer(tiny_checkpoints: dict[str, Path], family: str) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints[family])
    assert checkpoint.n_layers == 3
    assert [spec.key for spec in checkpoint.matrices()] == [MatrixKey(i, p) for i in range(3) for p in PROJECTIONS]
    down = checkpoint.matrix(MatrixKey(2, "down"))
    assert (down.out_features, down.in_features) == (48, 84)
    assert down.tensor_name == "model.layers.2.mlp.down_proj.weight"
    assert checkpoint.tied_head == (family == "qwen2")
    total = (tiny_checkpoints[family] / "model.safetensors").stat().st_size
    data = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    assert checkpoint.other_bytes + checkpoint.matrix_bytes == data < total


def test_a_stored_tied_head_counts_once(broken_copy: Path) -> None:
    before = open_checkpoint(broken_copy).other_bytes
    tensors = load_file(broken_copy / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, broken_copy / "model.safetensors")
    assert open_checkpoint(broken_copy).other_bytes == before


def _shard(root: Path) -> dict[str, str]:
    """Split model.safetensors of ``root`` in two and write the index."""
    tensors = load_file(root / "model.safetensors")
    weight_map = {}
    for number in (1, 2):
        shard = f"model-{number:05d}-of-00002.safetensors"
        part = {name: t for i, (name, t) in enumerate(sorted(tensors.items())) if i % 2 == number - 1}
        save_file(part, root / shard)
        weight_map.update(dict.fromkeys(part, shard))
    (root / "model.safetensors").unlink()
    _write_index(root, weight_map)
    return weight_map


def _write_index(root: Path, weight_map: dict[str, str]) -> None:
    (root / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_fingerprint_depends_on_content_and_not_on_sharding(broken_copy: Path) -> None:
    original = open_checkpoint(broken_copy).fingerprint
    assert len(original) == 64
    config = json.loads((broken_copy / "config.json").read_text())
    (broken_copy / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    _shard(broken_copy)
    assert open_checkpoint(broken_copy).fingerprint == original
    shard = broken_copy / "model-00002-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    changed = open_checkpoint(broken_copy).fingerprint
    assert changed != original
    (broken_copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert open_checkpoint(broken_copy).fingerprint not in (original, changed)


def test_missing_path_and_missing_config(tmp_path: Path, broken_copy: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        check_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="not a directory"):
        check_checkpoint(broken_copy / "config.json")
    (broken_copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        check_checkpoint(broken_copy)


def test_pickle_is_refused_with_a_cure(broken_copy: Path) -> None:
    (broken_copy / "model.safetensors").rename(broken_copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle.*safetensors"):
        check_checkpoint(broken_copy)
    (broken_copy / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        check_checkpoint(broken_copy)


def test_truncated_file(broken_copy: Path) -> None:
    path = broken_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        check_checkpoint(broken_copy)


def test_an_index_that_lies(broken_copy: Path) -> None:
    weight_map = _shard(broken_copy)
    check_checkpoint(broken_copy)
    name = sorted(weight_map)[0]
    other = next(shard for shard in weight_map.values() if shard != weight_map[name])
    for lie, message in [
        ({**weight_map, name: other}, "lies"),
        ({k: v for k, v in weight_map.items() if k != name}, "no shard"),
        ({**weight_map, "model.extra": other}, r"model\.extra"),
        ({**weight_map, name: "model-00003-of-00003.safetensors"}, "model-00003-of-00003.safetensors is missing"),
        ({**weight_map, name: "../secret.safetensors"}, "not a file beside"),
        ({}, "no weight_map"),
    ]:
        _write_index(broken_copy, lie)
        with pytest.raises(CheckpointError, match=message):
            check_checkpoint(broken_copy)


def _edit_config(root: Path, **changes: object) -> None:
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 4}, "num_hidden_layers = 4, the tensors hold 3"),
        ({"intermediate_size": 80}, "gate_proj"),
        ({"num_key_value_heads": 4}, "k_proj"),
        ({"vocab_size": 100}, "vocab_size"),
        ({"tie_word_embeddings": False}, r"lm_head\.weight"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised"),
    ],
)
def test_a_config_that_disagrees(broken_copy: Path, changes: dict[str, object], message: str) -> None:
    _edit_config(broken_copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(broken_copy)


def test_missing_projection_and_layer_are_named(broken_copy: Path) -> None:
    path = broken_copy / "model.safetensors"
    tensors = load_file(path)
    save_file({n: t for n, t in tensors.items() if n != "model.layers.1.self_attn.v_proj.weight"}, path)
    with pytest.raises(UnsupportedArchitecture, match=r"'v' not found: no tensor model\.layers\.1"):
        check_checkpoint(broken_copy)
    save_file({n: t for n, t in tensors.items() if ".layers.1." not in n}, path)
    with pytest.raises(UnsupportedArchitecture, match=r"model\.layers\.1 is missing"):
        check_checkpoint(broken_copy)
    save_file({"model.embed_tokens.weight": tensors["model.embed_tokens.weight"]}, path)
    with pytest.raises(UnsupportedArchitecture, match="no decoder layers"):
        check_checkpoint(broken_copy)


def test_a_second_numbered_list_does_not_confuse(broken_copy: Path) -> None:
    path = broken_copy / "model.safetensors"
    tensors = load_file(path)
    bias = tensors["model.norm.weight"]
    save_file({**tensors, **{f"vision.blocks.{i}.proj.bias": bias.clone() for i in range(9)}}, path)
    assert open_checkpoint(broken_copy).layout.prefix == "model.layers"


def test_real_model(shared_data: Path) -> None:
    checkpoint = open_checkpoint(shared_data / "models" / "stories260K")
    assert (checkpoint.n_layers, len(checkpoint.matrices())) == (5, 35)
    assert checkpoint.matrix(MatrixKey(4, "down")).in_features == 172


def test_opening_needs_no_torch(qwen2: Path) -> None:
    code = (
        "import sys\nfrom compress_core.checkpoint import open_checkpoint\n"
        "from compress_core.pack.layout import fixed_bytes\n"
        f"fixed_bytes(open_checkpoint({str(qwen2)!r}))\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[4])


def test_unknown_matrix(qwen2: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no matrix 7\.q"):
        open_checkpoint(qwen2).matrix(MatrixKey(7, "q"))


def test_copy_leaves_original_alone(qwen2: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(qwen2, tmp_path / "copy")
    assert open_checkpoint(copy).fingerprint == open_checkpoint(qwen2).fingerprint
