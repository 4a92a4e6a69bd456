"""Damaged checkpoints with fused matrices or experts: named by their headers alone, or by the fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress_core.checkpoint import check_checkpoint, open_checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.errors import CheckpointError, NonFiniteValues

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(unusual_family: Path, tmp_path: Path) -> Path:
    """The checkpoint in two shards."""
    tensors = load_file(unusual_family / "model.safetensors")
    weight_map = {}
    for number in (1, 2):
        shard = f"model-{number:05d}-of-00002.safetensors"
        part = {name: tensor for i, (name, tensor) in enumerate(sorted(tensors.items())) if i % 2 == number - 1}
        save_file(part, tmp_path / shard)
        weight_map.update(dict.fromkeys(part, shard))
    (tmp_path / "config.json").write_bytes((unusual_family / "config.json").read_bytes())
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert open_checkpoint(tmp_path).fingerprint == open_checkpoint(unusual_family).fingerprint
    return tmp_path


def _matrix_tensor(root: Path) -> tuple[str, Path]:
    """The tensor of the last matrix of the first layer that is no whole module of its own, and its shard."""
    checkpoint = open_checkpoint(root)
    name = [s for s in checkpoint.matrices() if s.rows is not None or s.key.expert_idx >= 0][-1].tensor_name
    return name, checkpoint.tensors[name].file


def test_a_truncated_shard(sharded: Path) -> None:
    _, shard = _matrix_tensor(sharded)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{shard.name} is truncated"):
        check_checkpoint(sharded)


def test_a_missing_shard(sharded: Path) -> None:
    _, shard = _matrix_tensor(sharded)
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"shard {shard.name} is missing"):
        check_checkpoint(sharded)


def test_an_index_that_lies(sharded: Path) -> None:
    name, shard = _matrix_tensor(sharded)
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][name] = next(s for s in index["weight_map"].values() if s != shard.name)
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"lies: .*{name.replace('.', '[.]')}"):
        check_checkpoint(sharded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_that_are_not_finite(sharded: Path, dtype: torch.dtype) -> None:
    name, shard = _matrix_tensor(sharded)
    tensors = {n: tensor.to(dtype) for n, tensor in load_file(shard).items()}
    tensors[name].view(-1)[[3, -1]] = torch.tensor([torch.inf, torch.nan], dtype=dtype)
    save_file(tensors, shard)
    checkpoint = open_checkpoint(sharded)
    message = rf"tensor {name.replace('.', '[.]')} in .*{shard.name} holds 2 NaN or infinite values of \d+"
    with pytest.raises(NonFiniteValues, match=message):
        _ = checkpoint.fingerprint
    last = [spec for spec in checkpoint.matrices() if spec.tensor_name == name][-1]
    with pytest.raises(NonFiniteValues, match=rf"tensor {name.replace('.', '[.]')}"):
        read_matrix(checkpoint, last)
