"""The bytes that no choice of configs changes, and room enough in the header for the longest entries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.writer import Entry, encode_header
from compress_core.config import CODEBOOK_BITS, CompressionConfig
from compress_core.pack.description import PACKED_SUFFIX, ModelDescription, PackedMatrixInfo
from compress_core.pack.layout import fixed_bytes, header_bytes, module_name
from compress_core.pack.shards import plan_shards

#: the config whose JSON is longest, but for the seed, which makes each one different
LONGEST = CompressionConfig(
    b_q=8, rank=48, factor_bits=(16, 8), codebook="trellis", seed=2**31 - 1, iterations=100, states=65536
)


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral"])
def test_header_has_room_for_the_longest_entries(tiny_checkpoints: dict[str, Path], family: str) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints[family])
    (shard,) = plan_shards(checkpoint)
    assert len(LONGEST.codebook) == max(map(len, CODEBOOK_BITS))
    entries = [Entry(tensor.name, tensor.dtype, tensor.shape) for tensor in checkpoint.other_tensors]
    matrices = {}
    for number, spec in enumerate(checkpoint.matrices()):
        config = replace(LONGEST, seed=LONGEST.seed - number)
        matrices[module_name(spec)] = PackedMatrixInfo(config, (spec.out_features, spec.in_features))
        entries.append(Entry(module_name(spec) + PACKED_SUFFIX, "U8", (8 * spec.n_weights,)))
    description = ModelDescription("f" * 64, checkpoint.layout.prefix, checkpoint.n_layers, matrices)
    metadata = {"format": "pt", "bitbudget": description.to_json()}
    raw = encode_header(entries, metadata, header_bytes=header_bytes(shard))
    assert len(raw) % 8 == 0
    # the longest entries leave little of the room unused, so the room is not wasteful either
    assert header_bytes(shard) - len(raw.rstrip()) < 1024
    assert header_bytes(shard) < 450 * len(matrices) + 150 * len(checkpoint.other_tensors)


def test_fixed_bytes_of_a_tied_and_an_untied_model(tiny_checkpoints: dict[str, Path]) -> None:
    for path in tiny_checkpoints.values():
        checkpoint = open_checkpoint(path)
        (shard,) = plan_shards(checkpoint)
        assert fixed_bytes(checkpoint) == 8 + header_bytes(shard) + checkpoint.other_bytes
