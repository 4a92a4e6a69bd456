"""Guards NUMERICS_VERSION: when one of these numbers changes, raise the version in compress_core/version.py.

After that, this command takes down the new numbers in ``golden.json``:

    GOLDEN=write python -m pytest tests/compress_core/numerics/test_golden.py

Errors are compared with a tolerance: sums of another BLAS may flip single roundings, and descent and the alternation
then take other turns. Relative changes of 1e-6 in all weights and in H move these errors by less than 1e-5, at six bits
by 0.25 %. What involves no sums is compared exactly.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress_core import NUMERICS_VERSION, CompressionConfig, compress_matrix, sweep_matrix
from compress_core.codebooks import get_codebook

PATH = Path(__file__).with_name("golden.json")
WRITE = os.environ.get("GOLDEN") == "write"
CPU = torch.device("cpu")

#: each with its tolerance
CONFIGS = [
    (CompressionConfig(b_q=2), 0.01),
    (CompressionConfig(b_q=3, rank=4), 0.01),
    (CompressionConfig(b_q=4, rank=8, factor_bits=8, states=256), 0.01),
    (CompressionConfig(b_q=2, rank=8, factor_bits=16, states=4096), 0.01),
    (CompressionConfig(b_q=2, codebook="e8"), 0.01),
    (CompressionConfig(b_q=3, rank=4, codebook="e8"), 0.01),
    (CompressionConfig(b_q=3, codebook="scalar"), 0.01),
    (CompressionConfig(b_q=4, rank=4, codebook="scalar"), 0.01),
    (CompressionConfig(b_q=6, rank=4, factor_bits=(8, 16), codebook="scalar"), 0.03),
    (CompressionConfig(b_q=3, codebook="rtn"), 1e-5),
    (CompressionConfig(b_q=3, codebook="gptq"), 0.01),
]

Golden = dict[str, Any]


def digest(codes: Tensor) -> str:
    return hashlib.sha256(codes.contiguous().numpy().tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def golden() -> Iterator[Golden]:
    """What is on record; with GOLDEN=write, what the tests of this module put there."""
    if not WRITE:
        yield json.loads(PATH.read_text())
        return
    found: Golden = {"numerics_version": NUMERICS_VERSION}
    yield found
    PATH.write_text(json.dumps(found, indent=2) + "\n")


@pytest.fixture
def check(golden: Golden) -> Callable[[str, Any, float], None]:
    """Compare a value with the one on record of this name, or record it."""

    def compare(name: str, value: Any, tolerance: float = 0.0) -> None:
        if WRITE:
            golden[name] = value
            pytest.skip("recorded")
        assert value == (pytest.approx(golden[name], rel=tolerance) if tolerance else golden[name])

    return compare


def test_the_numbers_are_of_this_version(golden: Golden) -> None:
    assert golden["numerics_version"] == NUMERICS_VERSION


@pytest.mark.parametrize(("config", "tolerance"), CONFIGS, ids=str)
def test_errors(config: CompressionConfig, tolerance: float, make_layer, check) -> None:
    w, h = make_layer(96, 84)
    name = f"{config} {config.states}" if config.codebook == "trellis" else str(config)
    check(name, float(f"{sweep_matrix(w, h, [config])[0].calibration_weighted_error:.6g}"), tolerance)


def test_codes_without_sums(make_layer, check) -> None:
    w, _ = make_layer(96, 84)
    rtn = compress_matrix(w, None, CompressionConfig(b_q=3, codebook="rtn"))
    check("codes of rtn 3b", digest(rtn.tensors()["q_codes"]))


@pytest.mark.parametrize("bits", [3, 4])
def test_e8_codes_of_a_grid(bits: int, check) -> None:
    grid = ((torch.arange(4096) * 37 % 97).reshape(-1, 8).float() - 48) / 16
    check(f"codes of e8 {bits}b", digest(get_codebook("e8", bits, CPU).encode(grid)))


def test_hashes_of_configs(check) -> None:
    check("config hashes", [config.config_hash for config, _ in CONFIGS])
