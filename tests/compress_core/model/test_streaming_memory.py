"""A sweep's memory is that of one layer: in tensors' bytes, however many layers the model has.

What benchmarks/scale.py measures of whole processes at true shapes, in miniature.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.synthetic_checkpoint import Shape, write_weights
from compress_core import CompressionConfig, sweep_matrix
from compress_core.calibrate.calibration import Calibration
from compress_core.calibrate.run import calibrate_model, keep_tokens
from compress_core.calibrate.source import HessianSource
from compress_core.calibrate.streamed import StreamedCalibration
from compress_core.checkpoint import Checkpoint, open_checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.matrix import MatrixSpec
from compress_core.shared_inputs import SharedInput, SharedInputs
from compress_core.text.tokens import TokenWindows
from compress_core.verify.joint import joint_losses

WIDE = 320


def model(folder: Path, layers: int) -> Checkpoint:
    shape = Shape(
        hidden_size=32,
        intermediate_size=WIDE,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=4096,
        tie_word_embeddings=False,
        num_hidden_layers=layers,
    )
    write_weights(folder, shape)
    return open_checkpoint(folder)


def windows() -> TokenWindows:
    ids = np.random.default_rng(0).integers(0, 4096, size=(2, 16), dtype=np.int32)
    return TokenWindows(ids, np.full(2, 16))


def sweep(checkpoint: Checkpoint, hessians: HessianSource) -> None:
    inputs = SharedInputs(hessians, torch.device("cpu"))
    for spec in checkpoint.matrices():
        measure(checkpoint, spec, inputs.of(spec))
    hessians.close()


def measure(checkpoint: Checkpoint, spec: MatrixSpec, shared: SharedInput) -> None:
    """A function, so that nothing of one matrix is held while the next input is prepared."""
    config = CompressionConfig(b_q=2, codebook="scalar")
    sweep_matrix(read_matrix(checkpoint, spec), shared.h_II, [config], shared=shared)


@pytest.mark.parametrize("streamed", [False, True], ids=["stored H", "H computed on the way"])
def test_the_memory_of_a_sweep_is_that_of_one_layer(live_bytes, tmp_path: Path, streamed: bool) -> None:
    most = {}
    for layers in (1, 4):
        checkpoint, folder = model(tmp_path / f"model{layers}", layers), tmp_path / str(layers)
        hessians: HessianSource
        if streamed:
            keep_tokens(checkpoint, windows(), folder, source="", seed=0)
            (tmp_path / f"scratch{layers}").mkdir()
            hessians = StreamedCalibration.open(folder, checkpoint, tmp_path / f"scratch{layers}")
        else:
            calibrate_model(checkpoint, windows(), folder, source="", seed=0)
            hessians = Calibration.open(folder, checkpoint)
        with live_bytes() as live:
            sweep(checkpoint, hessians)
        most[layers] = live.most
    assert most[1] > 3 * 4 * WIDE**2  # H and its factors in float64
    assert most[4] < 1.05 * most[1]


def test_the_memory_of_a_calibration_is_that_of_one_layer(live_bytes, tmp_path: Path) -> None:
    most = {}
    for layers in (1, 4):
        checkpoint = model(tmp_path / f"model{layers}", layers)
        with live_bytes() as live:
            calibrate_model(checkpoint, windows(), tmp_path / str(layers), source="", seed=0)
        most[layers] = live.most
    assert most[1] > 8 * WIDE**2 // 2  # the sum for H, of which half is kept
    assert most[4] < 1.05 * most[1]


def test_the_memory_of_a_joint_pass_is_that_of_one_layer(live_bytes, tmp_path: Path) -> None:
    menu = [CompressionConfig(b_q=bits, codebook="rtn") for bits in (2, 3, 4)]
    most = {}
    for layers in (1, 4):
        checkpoint = model(tmp_path / f"model{layers}", layers)
        allocations = [{spec.key: config for spec in checkpoint.matrices()} for config in menu]
        with live_bytes() as live:
            joint_losses(checkpoint, None, windows(), allocations)
        most[layers] = live.most
    assert most[1] > 2 * 4 * 32 * WIDE  # a layer's MLP
    assert most[4] < 1.05 * most[1]
