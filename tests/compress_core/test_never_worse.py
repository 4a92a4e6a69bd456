"""On real matrices with their real Hessians: never above round-to-nearest, never above GPTQ, at the same bits.

A part of benchmarks/real_matrices.py: some projections of each model, those that were worst among them.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from torch import Tensor

from compress_core import CompressionConfig, sweep_matrix
from compress_core.calibrate.run import calibrate_model
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.codebooks.rtn import rtn_scales
from compress_core.error_metrics import calibration_weighted_error
from compress_core.gptq import nearest_level, round_in_order, unit_feedback
from compress_core.text.source import TextSource, split_text
from compress_core.text.tokens import sampled_windows

#: geometric mean of our errors over those of GPTQ on round-to-nearest's grid, at most
MEAN_RATIO = 0.5

#: in one process, which calibrates each model once
pytestmark = pytest.mark.xdist_group("never_worse")

Matrices = dict[str, tuple[Tensor, Tensor]]

#: what a weight may cost more than with a float16 a row: narrow matrices pay for our scales
MOST_EXTRA_BITS = 0.04
#: layer 1 of the demo model has the loudest inputs; its matrices are cut to so many rows, which are independent
DEMO, DEMO_ROWS = ("1.k", "1.o", "4.down"), 64
#: of text, of which 12 windows are taken
CHARACTERS = 200_000
STORIES = ("0.k", "0.v", "1.up", "2.k", "3.k", "3.q", "4.down")


def calibrated(model: Path, source: TextSource, path: Path) -> Matrices:
    checkpoint = open_checkpoint(model)
    weights = DenseWeights(checkpoint)
    text = split_text(source, "calibrate")[:CHARACTERS]
    tokens = sampled_windows(model, text, samples=12, length=128, seed=0)
    calibration = calibrate_model(checkpoint, tokens, path, source="test", seed=0)
    return {
        str(spec.key): (weights.tensor(spec.tensor_name).float(), calibration.hessian(spec.key))
        for spec in checkpoint.matrices()
    }


@pytest.fixture(scope="module")
def demo(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Matrices:
    folder = tmp_path_factory.mktemp("demo")
    found = calibrated(repo / "demo" / "model", TextSource(), folder / "calibration")
    return {name: (found[name][0][:DEMO_ROWS], found[name][1]) for name in DEMO}


@pytest.fixture(scope="module")
def stories260k(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Matrices:
    source = TextSource(kind="file", path=shared_data / "tinystories" / "tinystories_val.txt")
    path = tmp_path_factory.mktemp("stories") / "calibration"
    found = calibrated(shared_data / "models" / "stories260K", source, path)
    return {name: found[name] for name in STORIES}


def plain_gptq_error(w: Tensor, h: Tensor, bits: int) -> float:
    """GPTQ on the grid of round-to-nearest: the row's scale from its largest weight, columns in their own order."""
    unit = unit_feedback(h.double() / h.double().diagonal().mean())
    return calibration_weighted_error(w, round_in_order(w, unit, nearest_level(rtn_scales(w, bits), bits)), h)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("model", ["demo", "stories260K"])
def test_never_above_round_to_nearest_nor_gptq(model: str, bits: int, request: pytest.FixtureRequest) -> None:
    matrices: Matrices = request.getfixturevalue(model.lower())
    ratios = {}
    for name, (w, h) in matrices.items():
        rtn, ours = sweep_matrix(w, h, [CompressionConfig(b_q=bits, codebook="rtn"), CompressionConfig(b_q=bits)])
        assert ours.bits_per_weight <= rtn.bits_per_weight + MOST_EXTRA_BITS
        assert ours.calibration_weighted_error < rtn.calibration_weighted_error, name
        ratios[name] = ours.calibration_weighted_error / plain_gptq_error(w, h, bits)
    assert max(ratios.values()) < 1, max(ratios, key=ratios.__getitem__)
    assert math.prod(ratios.values()) ** (1 / len(ratios)) < MEAN_RATIO


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_with_searched_steps_is_the_stronger_baseline(bits: int, stories260k: Matrices) -> None:
    for name, (w, h) in stories260k.items():
        found = sweep_matrix(w, h, [CompressionConfig(b_q=bits, codebook="gptq")])[0]
        assert found.calibration_weighted_error < plain_gptq_error(w, h, bits), name
