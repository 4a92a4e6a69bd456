"""Guards NUMERICS_VERSION: when one of these numbers changes, raise the version in compress_core/version.py.

Errors are compared with a tolerance: sums of another BLAS may flip single roundings. Relative changes of 1e-7 in the
weights move these errors by less than 0.1 %; with precise factors, where the alternation then takes other turns, by up
to 7 %. What involves no sums is compared exactly.
"""

import hashlib

import pytest
import torch

from compress_core import NUMERICS_VERSION, CompressionConfig, compress_matrix, sweep_matrix
from compress_core.codebooks import get_codebook

CPU = torch.device("cpu")

GOLDEN = [
    (CompressionConfig(b_q=2), 0.0128753, 0.005),
    (CompressionConfig(b_q=3, rank=4), 0.00247817, 0.01),
    (CompressionConfig(b_q=4, rank=8, factor_bits=8), 0.000235, 0.12),
    (CompressionConfig(b_q=2, rank=8, factor_bits=16), 0.00276786, 0.03),
    (CompressionConfig(b_q=3, codebook="scalar"), 0.00403955, 0.005),
    (CompressionConfig(b_q=4, rank=4, codebook="scalar"), 0.000652741, 0.01),
    (CompressionConfig(b_q=3, codebook="rtn"), 0.042257, 1e-5),
]


def digest(codes: torch.Tensor) -> str:
    return hashlib.sha256(codes.contiguous().numpy().tobytes()).hexdigest()[:16]


def test_version_of_these_numbers() -> None:
    assert NUMERICS_VERSION == 1


@pytest.mark.parametrize(("config", "expected", "tolerance"), GOLDEN, ids=lambda v: str(v))
def test_errors(config: CompressionConfig, expected: float, tolerance: float, make_layer) -> None:
    w, h = make_layer(96, 84)
    measured = sweep_matrix(w, h, [config])[0]
    assert measured.calibration_weighted_error == pytest.approx(expected, rel=tolerance)


def test_codes_without_sums(make_layer) -> None:
    w, _ = make_layer(96, 84)
    rtn = compress_matrix(w, None, CompressionConfig(b_q=3, codebook="rtn"))
    assert digest(rtn.tensors()["q_codes"]) == "aa8050f8ec69f024"


@pytest.mark.parametrize(("bits", "expected"), [(3, "ba290812fb218888"), (4, "ca71ce633d7392da")])
def test_e8_codes_of_a_grid(bits: int, expected: str) -> None:
    grid = ((torch.arange(4096) * 37 % 97).reshape(-1, 8).float() - 48) / 16
    assert digest(get_codebook("e8", bits, CPU).encode(grid)) == expected
