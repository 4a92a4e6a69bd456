"""CompressionConfig refuses what it cannot mean, whatever the type."""

from __future__ import annotations

from typing import Any

import pytest

from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError


@pytest.mark.parametrize("bits", [4.0, 4.5, None, "4", True, [4, 8.0], [4], (4, 8, 16), {"l": 4}, [[4], [8]]])
def test_factor_bits_of_another_kind_are_refused(bits: Any) -> None:
    with pytest.raises(ConfigError, match="factor_bits must be 4, 8 or 16"):
        CompressionConfig.from_dict({"b_q": 2, "rank": 4, "factor_bits": bits})


def test_equal_factor_bits_have_one_hash() -> None:
    one, pair = CompressionConfig(b_q=2, rank=4, factor_bits=8), CompressionConfig(b_q=2, rank=4, factor_bits=(8, 8))
    assert one == pair
    assert one.config_hash == pair.config_hash
    mixed = CompressionConfig.from_dict({"b_q": 2, "rank": 4, "factor_bits": [4, 8]})
    assert (mixed.factor_bits_l, mixed.factor_bits_r) == (4, 8)


@pytest.mark.parametrize("codebook", [["e8"], {}, None, 2])
def test_a_codebook_that_is_no_name_is_refused(codebook: Any) -> None:
    with pytest.raises(ConfigError, match="unknown codebook"):
        CompressionConfig.from_dict({"b_q": 2, "codebook": codebook})


@pytest.mark.parametrize("states", [128, 131072, 3000, 0, -256, 4096.0, True, None])
def test_states_must_be_a_power_of_two_in_range(states: Any) -> None:
    with pytest.raises(ConfigError, match="states must be"):
        CompressionConfig.from_dict({"b_q": 2, "codebook": "trellis", "states": states})


def test_states_count_for_the_trellis_alone() -> None:
    few, many = (CompressionConfig(b_q=2, codebook="trellis", states=s) for s in (256, 65536))
    assert few.config_hash != many.config_hash
    assert CompressionConfig.from_dict(many.to_dict()) == many
    scalar = [CompressionConfig(b_q=2, codebook="scalar", states=s).config_hash for s in (256, 65536)]
    assert scalar[0] == scalar[1]


def test_hashes_from_before_the_trellis_still_hold() -> None:
    before = CompressionConfig(b_q=2, rank=16, codebook="e8", iterations=5)
    assert before.config_hash == "7492337e22666e5d"


def test_what_has_no_effect_at_rank_0_has_no_hash_of_its_own() -> None:
    plain = CompressionConfig(b_q=2)
    for fields in ({"iterations": 7}, {"factor_bits": 16}, {"factor_bits": (4, 8)}):
        assert CompressionConfig.from_dict({"b_q": 2, **fields}).config_hash == plain.config_hash
        ranked = CompressionConfig.from_dict({"b_q": 2, "rank": 1, **fields})
        assert ranked.config_hash != CompressionConfig(b_q=2, rank=1).config_hash
