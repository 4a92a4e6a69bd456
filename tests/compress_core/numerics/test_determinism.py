"""The same seed and config give the same bytes: alone or in a sweep, in any order, in any process.

With another number of threads a matrix product may add up in another order, so that only the error is promised then;
nothing of ours (the search of paths, the choice of scales) depends on it.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress_core import CompressedMatrix, CompressionConfig, compress_matrix, sweep_matrix
from compress_core.context import prepare_matrix
from compress_core.decompose import compress_prepared
from compress_core.error_metrics import calibration_weighted_error
from compress_core.measurement import MatrixMeasurement

CPU = torch.device("cpu")
SHAPE = (70, 52)
CONFIGS = [
    CompressionConfig(b_q=2, states=256),
    CompressionConfig(b_q=2, rank=9, states=256),
    CompressionConfig(b_q=2, rank=3, factor_bits=(4, 16), states=512),
    CompressionConfig(b_q=3, rank=3, factor_bits=8, states=256, iterations=2),
    CompressionConfig(b_q=2, rank=3, states=256, seed=5),
    CompressionConfig(b_q=2, rank=9, codebook="e8"),
    CompressionConfig(b_q=3, codebook="e8"),
    CompressionConfig(b_q=2, rank=3, factor_bits=16, codebook="scalar"),
    CompressionConfig(b_q=7, codebook="scalar"),
    CompressionConfig(b_q=3, codebook="gptq"),
    CompressionConfig(b_q=3, codebook="rtn"),
]


def digest(compressed: CompressedMatrix) -> str:
    return hashlib.sha256(compressed.blob().numpy().tobytes()).hexdigest()


def facts(measurement: MatrixMeasurement) -> tuple[object, ...]:
    """All but the time."""
    m = measurement
    return (m.config, m.raw_mse, m.normalized_mse, m.calibration_weighted_error, m.nbytes)


#: in one process, which compresses the layer once
pytestmark = pytest.mark.xdist_group("determinism")


@pytest.fixture(scope="module")
def layer(make_layer) -> tuple[Tensor, Tensor]:
    return make_layer(*SHAPE)


@pytest.fixture(scope="module")
def alone(layer) -> dict[CompressionConfig, str]:
    """The bytes of each config, compressed by itself."""
    return {config: digest(compress_matrix(*layer, config)) for config in CONFIGS}


def test_a_sweep_measures_the_same_in_any_order(layer) -> None:
    w, h = layer
    expected = {m.config: facts(m) for m in sweep_matrix(w, h, CONFIGS)}
    for seed in range(2):
        order = random.Random(seed).sample(CONFIGS, len(CONFIGS))
        for measured in sweep_matrix(w, h, order):
            assert facts(measured) == expected[measured.config]
    for config in CONFIGS[1::3]:
        assert facts(sweep_matrix(w, h, [config])[0]) == expected[config]


def test_a_shared_preparation_gives_the_bytes_of_each_config_alone(layer, alone) -> None:
    w, h = layer
    assert len(set(alone.values())) == len(alone)
    for order in (CONFIGS, CONFIGS[::-1]):
        contexts = {config.seed: prepare_matrix(w, h, config.seed, CPU) for config in CONFIGS}
        with torch.no_grad():
            for config in order:
                assert digest(compress_prepared(contexts[config.seed], config)) == alone[config], config


_CHILD = """
import hashlib, json, sys, torch
from safetensors.torch import load_file
from compress_core import CompressionConfig, compress_matrix
torch.set_num_threads(1)
layer = load_file(sys.argv[1])
for values in json.loads(sys.argv[2]):
    blob = compress_matrix(layer["w"], layer["h"], CompressionConfig.from_dict(values)).blob()
    sys.stdout.write(hashlib.sha256(blob.numpy().tobytes()).hexdigest() + "\\n")
"""


def test_another_process_makes_the_same_bytes(layer, alone, tmp_path: Path, repo: Path) -> None:
    from safetensors.torch import save_file

    w, h = layer
    save_file({"w": w, "h": h}, tmp_path / "layer.safetensors")
    values = json.dumps([config.to_dict() for config in CONFIGS])
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "layer.safetensors"), values],
        cwd=repo, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert child.stdout.split() == list(alone.values())


@pytest.fixture
def two_threads() -> Iterator[Callable[[], None]]:
    """Call it to go from one thread to two."""
    yield lambda: torch.set_num_threads(2)
    torch.set_num_threads(1)


def test_two_threads_reach_the_error_of_one(make_layer, two_threads) -> None:
    w, h = make_layer(300, 140)  # enough for both
    configs = [CompressionConfig(b_q=2, rank=6, states=256, iterations=1), CompressionConfig(b_q=3, codebook="e8")]

    def compressed() -> list[CompressedMatrix]:
        return [compress_matrix(w, h, config) for config in configs]

    one = compressed()
    two_threads()
    two, again = compressed(), compressed()
    for config, a, b, c in zip(configs, one, two, again, strict=True):
        assert digest(b) == digest(c), config
        errors = [calibration_weighted_error(w, x.dequantize(), h) for x in (a, b)]
        assert errors[1] == pytest.approx(errors[0], rel=0.02), config


@pytest.mark.parametrize("config", CONFIGS[:6:2], ids=str)
def test_the_generators_of_the_caller_are_left_alone(config: CompressionConfig, layer, alone) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert digest(compress_matrix(*layer, config)) == alone[config]
    assert torch.equal(torch.rand(4), expected)
