"""The bytes that no choice of configs changes, and room enough in the header for the longest entries."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.writer import Entry, encode_header
from compress_core.config import BASELINE_CODEBOOKS, CODEBOOK_BITS, CompressionConfig
from compress_core.nbytes import packed_parts
from compress_core.pack.layout import PART_NAMES, fixed_bytes, header_bytes, module_name


def test_every_part_that_a_config_can_have_is_known() -> None:
    for codebook, bits in CODEBOOK_BITS.items():
        for b_q, rank, factor_bits in itertools.product(bits, (0, 4), (4, 8, 16, (16, 4))):
            if codebook in BASELINE_CODEBOOKS and rank:
                continue
            config = CompressionConfig(b_q=b_q, rank=rank, factor_bits=factor_bits, codebook=codebook)
            names = {part.name.replace("_values", "_codes") for part in packed_parts(config, 64, 172)}
            assert names <= set(PART_NAMES)


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral"])
def test_header_has_room_for_the_longest_entries(tiny_checkpoints: dict[str, Path], family: str) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints[family])
    metadata = {"format": "bitbudget-packed", "model": "x" * 200}
    entries = [Entry(tensor.name, tensor.dtype, tensor.shape) for tensor in checkpoint.other_tensors]
    for spec in checkpoint.matrices():
        config = CompressionConfig(
            b_q=4, rank=48, factor_bits=(16, 8), codebook="scalar", seed=2**31 - 1, iterations=100, states=65536
        )
        meta = {"config": config.to_dict(), "shape": [spec.out_features, spec.in_features], "rotated": False}
        metadata[module_name(spec)] = json.dumps(meta, separators=(",", ":"))
        parts = [Entry(f"{module_name(spec)}.{part}", "F32", (spec.n_weights,)) for part in PART_NAMES]
        entries += parts
    assert len(encode_header(entries, metadata, header_bytes=header_bytes(checkpoint))) % 8 == 0
    assert header_bytes(checkpoint) < 1400 * len(checkpoint.matrices()) + 200 * len(checkpoint.other_tensors)


def test_fixed_bytes_of_a_tied_and_an_untied_model(tiny_checkpoints: dict[str, Path]) -> None:
    for path in tiny_checkpoints.values():
        checkpoint = open_checkpoint(path)
        assert fixed_bytes(checkpoint) == 8 + header_bytes(checkpoint) + checkpoint.other_bytes
