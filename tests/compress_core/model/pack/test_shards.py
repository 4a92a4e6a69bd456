"""A packed model in several files: planned from the structure alone, exact to the byte, the same model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.checkpoint import INDEX_FILE
from compress_core.checkpoint.read import read_tensor
from compress_core.checkpoint.writer import Entry, encode_header
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, PackedFormatError
from compress_core.matrix import MatrixKey
from compress_core.pack import CompressedLinear, PackedModel, write_packed_model
from compress_core.pack.description import PACKED_SUFFIX, ModelDescription, PackedMatrixInfo
from compress_core.pack.layout import FILE_NAME, fixed_bytes, header_bytes, module_name, stored_bytes, weight_files
from compress_core.pack.report import expected_bytes
from compress_core.pack.shards import plan_shards
from compress_core.text.tokens import TokenWindows

MENU = (CompressionConfig(b_q=4, codebook="rtn"), CompressionConfig(b_q=2, codebook="e8"))
#: less than one layer: each layer has a file of its own
SMALL = 1000


def _items(path: Path) -> dict[MatrixKey, CompressionConfig]:
    return {spec.key: MENU[n % 2] for n, spec in enumerate(open_checkpoint(path).matrices())}


@pytest.fixture(scope="module")
def sharded(tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sharded") / "llama"
    path = tiny_checkpoints["llama"]
    report = write_packed_model(open_checkpoint(path), None, _items(path), out, shard_bytes=SMALL)
    assert report.exact
    return out


def test_the_plan_follows_the_layers(tiny_checkpoints: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints["llama"])
    (whole,) = plan_shards(checkpoint)
    assert whole.name == FILE_NAME
    assert whole.specs == checkpoint.matrices()
    assert whole.others == checkpoint.other_tensors
    layer = sum(checkpoint.stored_nbytes(spec) for spec in checkpoint.layer_matrices(0))
    first, last = plan_shards(checkpoint, 2 * layer)
    assert (first.name, last.name) == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert [layer_idx for layer_idx, _ in first.layers()] == [0, 1]
    assert [layer_idx for layer_idx, _ in last.layers()] == [2]
    assert {"model.embed_tokens.weight", "model.norm.weight"} < {tensor.name for tensor in first.others}
    assert [tensor.name for tensor in last.others] == [
        "lm_head.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.2.post_attention_layernorm.weight",
    ]
    for limit in (1, layer, 2 * layer - 1):
        shards = plan_shards(checkpoint, limit)
        assert len(shards) == 3
        assert sum((shard.specs for shard in shards), ()) == checkpoint.matrices()
        others = [tensor.name for shard in shards for tensor in shard.others]
        assert sorted(others) == [tensor.name for tensor in checkpoint.other_tensors]


def test_bytes_on_disk_are_those_predicted(sharded: Path, tiny_checkpoints: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints["llama"])
    items = _items(checkpoint.path)
    files = weight_files(sharded)
    assert len(files) == 3
    assert stored_bytes(sharded) == sum(file.stat().st_size for file in files)
    assert stored_bytes(sharded) == expected_bytes(checkpoint, items, shard_bytes=SMALL)
    assert fixed_bytes(checkpoint, shard_bytes=SMALL) > fixed_bytes(checkpoint)
    assert {path.name for path in sharded.glob("*.safetensors*")} == {*(file.name for file in files), INDEX_FILE}
    index = json.loads((sharded / INDEX_FILE).read_text())
    assert index["weight_map"]["lm_head.weight"] == files[-1].name
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in PackedModel.open(sharded)._tensors.values())


def test_it_is_the_same_model_as_in_one_file(
    sharded: Path, tiny_checkpoints: dict[str, Path], random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    path = tiny_checkpoints["llama"]
    write_packed_model(open_checkpoint(path), None, _items(path), tmp_path / "one")
    one, several = PackedModel.open(tmp_path / "one"), PackedModel.open(sharded)
    assert several.keys() == one.keys() == tuple(_items(path))
    assert all(torch.equal(several.weight(key), one.weight(key)) for key in one.keys())  # noqa: SIM118
    assert all(
        torch.equal(several.tensor(tensor.name), read_tensor(tensor)) for tensor in open_checkpoint(path).other_tensors
    )
    ids = torch.from_numpy(random_windows(2, 10).ids).long()
    for options in ({}, {"dequantize": True}):
        models = [
            AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32, **options) for p in (one.path, several.path)
        ]
        with torch.no_grad():
            assert torch.equal(models[0](ids).logits, models[1](ids).logits)


def test_damaged_directories_are_named(sharded: Path, qwen2: Path, tmp_path: Path) -> None:
    files = [file.name for file in weight_files(sharded)]

    def copy(name: str) -> Path:
        return Path(shutil.copytree(sharded, tmp_path / name))

    missing = copy("missing")
    (missing / files[1]).unlink()
    assert stored_bytes(missing) is None
    with pytest.raises(PackedFormatError, match=rf"{files[1]} is missing"):
        PackedModel.open(missing)
    truncated = copy("truncated")
    (truncated / files[2]).write_bytes((sharded / files[2]).read_bytes()[:-3])
    with pytest.raises(PackedFormatError, match=rf"{files[2]} is truncated"):
        PackedModel.open(truncated)
    lying = copy("lying")
    index = json.loads((lying / INDEX_FILE).read_text())
    index["weight_map"]["lm_head.weight"] = files[0]
    (lying / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(PackedFormatError, match=rf"lies: lm_head.weight is in {files[2]}, the index says {files[0]}"):
        PackedModel.open(lying)
    (lying / INDEX_FILE).write_text(json.dumps({"weight_map": {"lm_head.weight": "../model.safetensors"}}))
    with pytest.raises(PackedFormatError, match=r"index\.json is damaged"):
        PackedModel.open(lying)
    mixed = copy("mixed")
    write_packed_model(open_checkpoint(qwen2), None, _items(qwen2), tmp_path / "other", shard_bytes=SMALL)
    shutil.copy(tmp_path / "other" / files[2], mixed / files[2])
    with pytest.raises(PackedFormatError, match="belongs to another model"):
        PackedModel.open(mixed)


def test_every_header_has_room_for_the_longest_entries(family: Path) -> None:
    checkpoint = open_checkpoint(family)
    longest = CompressionConfig(
        b_q=8, rank=99, factor_bits=(16, 8), codebook="trellis", seed=2**31 - 1, iterations=100, states=65536
    )
    for shard in plan_shards(checkpoint, SMALL, head=not checkpoint.tied_head):
        entries = [Entry(tensor.name, tensor.dtype, tensor.shape) for tensor in shard.others]
        matrices = {}
        for number, spec in enumerate(shard.specs):
            config = replace(longest, seed=longest.seed - number).clamped(spec.out_features, spec.in_features)
            first_row = None if spec.rows is None else spec.rows[0]
            matrices[module_name(spec)] = PackedMatrixInfo(config, (spec.out_features, spec.in_features), first_row)
            entries.append(Entry(module_name(spec) + PACKED_SUFFIX, "U8", (8 * spec.n_weights,)))
        description = ModelDescription("f" * 64, checkpoint.layout.prefix, checkpoint.n_layers, matrices)
        assert ModelDescription.from_json(description.to_json()) == description
        encode_header(entries, {"format": "pt", "bitbudget": description.to_json()}, header_bytes=header_bytes(shard))


@pytest.mark.parametrize("shard_bytes", [SMALL, 10**9])
def test_a_head_of_its_own_can_be_compressed(
    tiny_checkpoints: dict[str, Path],
    random_windows: Callable[..., TokenWindows],
    tmp_path: Path,
    shard_bytes: int,
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints["llama"])
    items, head = _items(checkpoint.path), CompressionConfig(b_q=4, codebook="e8")
    report = write_packed_model(
        checkpoint, None, items, tmp_path / "packed", head=head, shard_bytes=shard_bytes, work_dir=tmp_path / "work"
    )
    assert report.exact
    assert report.actual_bytes == expected_bytes(checkpoint, items, head=head, shard_bytes=shard_bytes)
    assert report.actual_bytes < expected_bytes(checkpoint, items, shard_bytes=shard_bytes)
    packed = PackedModel.open(tmp_path / "packed")
    assert packed.keys() == tuple(items)
    assert packed.head is not None
    assert packed.head.config == head
    assert not packed.tied_head
    original = read_tensor(checkpoint.tensors["lm_head.weight"])
    assert 0 < (packed.tensor("lm_head.weight") - original).norm() < 0.15 * original.norm()
    model = AutoModelForCausalLM.from_pretrained(packed.path, dtype=torch.float32)
    dense = AutoModelForCausalLM.from_pretrained(packed.path, dtype=torch.float32, dequantize=True)
    assert isinstance(model.lm_head, CompressedLinear)
    assert torch.equal(dense.lm_head.weight, packed.tensor("lm_head.weight"))
    ids = torch.from_numpy(random_windows(2, 10).ids).long()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-4, atol=1e-4)
        model.save_pretrained(tmp_path / "again")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
        assert torch.equal(again(ids).logits, model(ids).logits)
    tied = open_checkpoint(tiny_checkpoints["qwen2"])
    with pytest.raises(ConfigError, match="tied to the token embedding"):
        write_packed_model(tied, None, _items(tied.path), tmp_path / "tied", head=head)
    with pytest.raises(ConfigError, match="tied to the token embedding"):
        fixed_bytes(tied, head=head)
