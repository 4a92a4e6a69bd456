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
