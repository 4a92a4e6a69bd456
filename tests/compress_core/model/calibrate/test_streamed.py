"""H computed while it is used has the bits of a stored calibration, whatever is asked for and wherever it stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress_core import CompressionConfig
from compress_core.calibrate.calibration import Calibration
from compress_core.calibrate.inputs import input_name
from compress_core.calibrate.recipe import TOKENS
from compress_core.calibrate.run import calibrate_model, keep_tokens
from compress_core.calibrate.streamed import StreamedCalibration
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.errors import CalibrationError, Interrupted
from compress_core.matrix import MatrixKey
from compress_core.sensitivity.fidelity import layer_fidelity
from compress_core.text.tokens import TokenWindows


@pytest.fixture
def checkpoint(qwen2: Path) -> Checkpoint:
    return open_checkpoint(qwen2)


@pytest.mark.parametrize("ram_bytes", [0, 1 << 30], ids=["mapped", "memory"])
def test_has_the_bits_of_a_stored_one(
    checkpoint: Checkpoint, qwen2_calibration: Calibration, tmp_path: Path, ram_bytes: int
) -> None:
    streamed = StreamedCalibration.open(qwen2_calibration.path, checkpoint, tmp_path / "s", ram_bytes=ram_bytes)
    assert streamed.info == qwen2_calibration.info
    for spec in checkpoint.matrices():
        assert torch.equal(streamed.hessian(spec.key), qwen2_calibration.hessian(spec.key)), spec.key
        assert len(list((tmp_path / "s").glob("layer-*"))) == 1
    # an earlier layer: the pass begins again
    assert torch.equal(streamed.hessian(MatrixKey(0, "o")), qwen2_calibration.hessian(MatrixKey(0, "o")))
    streamed.close()
    assert list((tmp_path / "s").iterdir()) == []


def test_fused_and_expert_matrices(
    unusual_family: Path, random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    """So few tokens that some expert sees none: it is named, and its H is the same in both."""
    checkpoint = open_checkpoint(unusual_family)
    stored = calibrate_model(checkpoint, random_windows(1, 2), tmp_path / "h", source="random", seed=0)
    unseen = stored.recipe.report["unseen"]
    routed = {f"{s.key.layer_idx}.{input_name(s.key)}" for s in checkpoint.matrices() if s.key.expert_idx >= 0}
    # 2 tokens go to 2 of 5 experts each
    assert set(unseen) <= routed
    assert bool(unseen) == bool(routed)
    streamed = StreamedCalibration.open(tmp_path / "h", checkpoint, tmp_path / "s")
    for spec in checkpoint.matrices():
        hessian = stored.hessian(spec.key)
        assert hessian.shape == (spec.in_features, spec.in_features)
        assert torch.equal(streamed.hessian(spec.key), hessian), spec.key


def test_tokens_alone_are_enough(
    checkpoint: Checkpoint, qwen2_calibration: Calibration, random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    keep_tokens(checkpoint, random_windows(12, 20), tmp_path / "kept", source="random", seed=0)
    keep_tokens(checkpoint, random_windows(12, 20), tmp_path / "kept", source="random", seed=0)  # a second time
    with pytest.raises(CalibrationError, match="StreamedCalibration"):
        Calibration.open(tmp_path / "kept", checkpoint)
    streamed = StreamedCalibration.open(tmp_path / "kept", checkpoint, tmp_path / "s")
    key = MatrixKey(1, "gate")
    assert torch.equal(streamed.hessian(key), qwen2_calibration.hessian(key))


@pytest.mark.parametrize("ram_bytes", [0, 1 << 30], ids=["mapped", "memory"])
def test_a_later_attempt_goes_on(
    checkpoint: Checkpoint, qwen2_calibration: Calibration, tmp_path: Path, ram_bytes: int
) -> None:
    """A second object on the same scratch folder is what a killed job's next attempt has."""
    told: list[str] = []

    def attempt(folder: Path = tmp_path) -> StreamedCalibration:
        told.clear()
        return StreamedCalibration.open(
            qwen2_calibration.path,
            checkpoint,
            folder,
            ram_bytes=ram_bytes,
            progress=lambda done, total, message: told.append(message),
        )

    attempt().hessian(MatrixKey(1, "q"))
    assert told == ["running layer 1 of 3, batch 1 of 1", "calibrating layer 2 of 3, batch 1 of 1"]
    second = attempt()
    for key in (MatrixKey(1, "q"), MatrixKey(1, "down")):
        assert torch.equal(second.hessian(key), qwen2_calibration.hessian(key))
    assert told == []
    assert torch.equal(second.hessian(MatrixKey(2, "v")), qwen2_calibration.hessian(MatrixKey(2, "v")))
    before = [] if ram_bytes == 0 else ["running layer 1 of 3, batch 1 of 1", "running layer 2 of 3, batch 1 of 1"]
    assert told == [*before, "calibrating layer 3 of 3, batch 1 of 1"]


def test_an_interrupted_layer_is_run_again(
    checkpoint: Checkpoint, qwen2_calibration: Calibration, tmp_path: Path
) -> None:
    stops = iter([False, True])

    def progress(done: int, total: int, message: str) -> None:
        if next(stops, False):
            raise Interrupted("paused")

    streamed = StreamedCalibration.open(qwen2_calibration.path, checkpoint, tmp_path, progress=progress)
    key = MatrixKey(1, "o")
    with pytest.raises(Interrupted):
        streamed.hessian(key)
    assert torch.equal(streamed.hessian(key), qwen2_calibration.hessian(key))


def test_only_what_is_wanted(checkpoint: Checkpoint, qwen2_calibration: Calibration, tmp_path: Path) -> None:
    key = MatrixKey(1, "o")
    streamed = StreamedCalibration.open(qwen2_calibration.path, checkpoint, tmp_path, wanted=[key])
    assert torch.equal(streamed.hessian(key), qwen2_calibration.hessian(key))
    for other in (MatrixKey(1, "q"), MatrixKey(0, "o"), MatrixKey(7, "o")):
        with pytest.raises(CalibrationError, match=f"no H for matrix {other}"):
            streamed.hessian(other)


def test_tokens_that_are_not_there_or_others(
    checkpoint: Checkpoint, random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        keep_tokens(checkpoint, random_windows(2, 5, seed), tmp_path / name, source="random", seed=0)
    (tmp_path / "a" / TOKENS).write_bytes((tmp_path / "b" / TOKENS).read_bytes())
    with pytest.raises(CalibrationError, match="does not hold the tokens"):
        StreamedCalibration.open(tmp_path / "a", checkpoint, tmp_path / "s")
    (tmp_path / "a" / TOKENS).unlink()
    with pytest.raises(CalibrationError, match="no tokens to compute H from"):
        StreamedCalibration.open(tmp_path / "a", checkpoint, tmp_path / "s")


def test_consumers_take_either(
    checkpoint: Checkpoint, qwen2_calibration: Calibration, random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    streamed = StreamedCalibration.open(qwen2_calibration.path, checkpoint, tmp_path)
    config = CompressionConfig(b_q=2, rank=2, codebook="scalar", iterations=1)
    stored, computed = (
        layer_fidelity(checkpoint, source, random_windows(2, 8), config) for source in (qwen2_calibration, streamed)
    )
    assert stored == computed
