"""Configs of a sweep and their measurements find each other whatever fields were left out."""

from __future__ import annotations

from itertools import product
from typing import Any

from compress_core.config import BASELINE_CODEBOOKS, CompressionConfig
from web.queries.figure_rows import _config_key, _config_names


def some_configs() -> list[CompressionConfig]:
    fields = {
        "b_q": [2, 3],
        "rank": [0, 8],
        "factor_bits": [4, (4, 16)],
        "codebook": ["trellis", "e8", "rtn"],
        "seed": [0, 1],
        "iterations": [3, 5],
        "states": [1024, 4096],
    }
    rows = [dict(zip(fields, values, strict=True)) for values in product(*fields.values())]
    return [CompressionConfig(**row) for row in rows if not (row["rank"] and row["codebook"] in BASELINE_CODEBOOKS)]


def test_keys_are_equal_where_hashes_are() -> None:
    configs = some_configs()
    hashes = [config.config_hash for config in configs]
    keys = [_config_key(config.to_dict()) for config in configs]
    assert len(set(zip(hashes, keys, strict=True))) == len(set(hashes)) == len(set(keys))


def test_a_field_left_out_has_its_default() -> None:
    short: dict[str, Any]
    for short in ({"b_q": 2}, {"b_q": 2, "rank": 8}, {"b_q": 3, "codebook": "e8"}):
        assert _config_key(short) == _config_key(CompressionConfig.from_dict(short).to_dict())


def test_names_tell_configs_apart() -> None:
    configs = [{"b_q": 2}, {"b_q": 2, "states": 4096}, {"b_q": 2, "seed": 3}, {"b_q": 2, "codebook": "e8"}]
    assert _config_names(configs) == [
        "trellis 2b r0 seed 0 it 2",
        "trellis/4096 2b r0",
        "trellis 2b r0 seed 3 it 2",
        "e8 2b r0",
    ]
