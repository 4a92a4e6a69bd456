"""NaN and infinity are counted in raw bytes as torch counts them in tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_core.checkpoint.finite import _AT_ONCE, count_non_finite
from compress_core.checkpoint.read import TORCH_DTYPES


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", ["F16", "BF16", "F32", "F64", "F8_E5M2", "F8_E4M3"])
def test_every_bit_pattern_of_the_upper_byte(name: str) -> None:
    dtype = TORCH_DTYPES[name]
    patterns = torch.arange(1 << 16, dtype=torch.int32)
    if dtype.itemsize == 1:
        values = patterns[:256].to(torch.uint8).view(dtype)
    else:  # the two upper bytes hold sign, exponent and the first bits of the fraction
        raw = torch.zeros((1 << 16, dtype.itemsize), dtype=torch.uint8)
        raw[:, -2], raw[:, -1] = (patterns & 255).to(torch.uint8), (patterns >> 8).to(torch.uint8)
        values = raw.view(dtype).reshape(-1)
    expected = int((~torch.isfinite(values.double())).sum())
    assert expected > 0
    assert count_non_finite(_bytes(values), name) == expected


@given(st.integers(0, 3 * _AT_ONCE), st.integers(0, 5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_anywhere(size: int, n_bad: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator).bfloat16()
    n_bad = min(n_bad, size)
    values[torch.randperm(size, generator=generator)[:n_bad]] = torch.inf
    assert count_non_finite(_bytes(values), "BF16") == n_bad


def test_whole_numbers_are_finite() -> None:
    assert count_non_finite(b"\xff" * 64, "I64") == 0
