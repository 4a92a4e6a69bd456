"""A calibration that was stopped or killed goes on at its layer and ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compress_core.calibrate.layer_file import layer_path
from compress_core.calibrate.recipe import MANIFEST
from compress_core.calibrate.run import SCRATCH, calibrate_model
from compress_core.checkpoint import open_checkpoint
from compress_core.errors import CalibrationError, Interrupted, OutOfMemory
from compress_core.stream import states
from compress_core.text.tokens import TokenWindows

#: hidden states above this go to mapped files
RAM_BYTES = {"memory": 1 << 30, "mapped": 0}

#: calibrates sys.argv[1] into sys.argv[2]; when the first layer's file is there it stands still amid the next one
PROGRAM = """
import signal, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from compress_core.calibrate.layer_file import layer_path
from compress_core.calibrate.run import calibrate_model
from compress_core.checkpoint import open_checkpoint
from compress_core.text.tokens import TokenWindows

model, out, ram_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
ids = np.random.default_rng(0).integers(0, 320, (6, 10)).astype(np.int32)

def crawl(done, total, message):
    if layer_path(out, 0).exists() and "batch 2" in message:
        Path(out, "reached").touch()
        signal.pause()

calibrate_model(
    open_checkpoint(model), TokenWindows(ids, np.full(6, 27, dtype=np.int64)), out,
    source="random", seed=0, batch_tokens=20, ram_bytes=ram_bytes, progress=crawl,
)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def calibrate(
    tiny_checkpoints: dict[str, Path], random_windows: Callable[..., TokenWindows]
) -> Callable[..., list[tuple[int, int, str]]]:
    """``calibrate(folder, stop_at=None, **options)``: the messages of a run that stops at one of them."""
    checkpoint = open_checkpoint(tiny_checkpoints["qwen2"])

    def run(folder: Path, stop_at: str | None = None, **options: object) -> list[tuple[int, int, str]]:
        messages: list[tuple[int, int, str]] = []

        def progress(done: int, total: int, message: str) -> None:
            messages.append((done, total, message))
            if stop_at is not None and stop_at in message:
                raise Interrupted("cancelled")

        values = {"source": "random", "seed": 0, "batch_tokens": 20} | options
        calibrate_model(checkpoint, random_windows(6, 10), folder, progress=progress, **values)
        return messages

    return run


@pytest.fixture(scope="module")
def undisturbed(calibrate: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "h"
    calibrate(folder)
    return contents(folder)


@pytest.mark.parametrize("kind", RAM_BYTES)
def test_goes_on_at_the_layer(
    calibrate: Callable[..., list[tuple[int, int, str]]], undisturbed: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    with pytest.raises(Interrupted):
        calibrate(tmp_path / "h", stop_at="layer 2 of 3, batch 2", ram_bytes=RAM_BYTES[kind])
    assert layer_path(tmp_path / "h", 0).exists()
    assert not (tmp_path / "h" / MANIFEST).exists()
    messages = calibrate(tmp_path / "h", ram_bytes=RAM_BYTES[kind])
    assert contents(tmp_path / "h") == undisturbed
    again = [m for m in messages if "layer 1 of 3 again" in m[2]]
    # what is left: layers 2 and 3 with H; and layer 1 without, where its states were in memory
    assert len(again) == (3 if kind == "memory" else 0)
    assert messages[0] == (0, 12 + len(again), "1 of 3 layers are there")
    assert messages[-1][0] == messages[-1][1]
    assert [m[2] for m in calibrate(tmp_path / "h")] == ["the calibration is there already"]


def test_a_damaged_layer_is_made_anew(
    calibrate: Callable[..., object], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        calibrate(tmp_path / "h", stop_at="layer 3 of 3, batch 1", ram_bytes=0)
    layer_path(tmp_path / "h", 0).write_bytes(b"torn")  # the states are beyond it: they begin again
    (tmp_path / "h" / ".layer-00002.safetensors.1.tmp").write_bytes(b"half")
    calibrate(tmp_path / "h", ram_bytes=0)
    assert contents(tmp_path / "h") == undisturbed


def test_layers_without_a_manifest_are_enough(
    calibrate: Callable[..., list[tuple[int, int, str]]], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    calibrate(tmp_path / "h")
    (tmp_path / "h" / MANIFEST).unlink()
    assert [m[2] for m in calibrate(tmp_path / "h")] == ["all layers are there already"]
    assert contents(tmp_path / "h") == undisturbed


@pytest.mark.parametrize("options", [{"seed": 1}, {"dtype": "bfloat16"}, {"batch_tokens": 10}, {"source": "other"}])
def test_another_calibration_is_never_taken_or_overwritten(
    calibrate: Callable[..., object], tmp_path: Path, options: dict[str, object]
) -> None:
    with pytest.raises(Interrupted):
        calibrate(tmp_path / "h", stop_at="layer 2 of 3, batch 1")
    before = contents(tmp_path / "h")
    with pytest.raises(CalibrationError, match=f"differs in {next(iter(options))}.*choose another folder"):
        calibrate(tmp_path / "h", **options)
    assert contents(tmp_path / "h") == before
    calibrate(tmp_path / "h")
    with pytest.raises(CalibrationError, match=f"differs in {next(iter(options))}.*choose another folder"):
        calibrate(tmp_path / "h", **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RAM_BYTES)
def test_kill_9_in_the_middle(
    tiny_checkpoints: dict[str, Path],
    calibrate: Callable[..., list[tuple[int, int, str]]],
    undisturbed: dict[str, bytes],
    repo: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    folder = tmp_path / "h"
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tiny_checkpoints["qwen2"]), str(folder), str(RAM_BYTES[kind])],
        cwd=repo,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 60
        while not (folder / "reached").exists():
            assert program.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()
    (folder / "reached").unlink()
    assert (folder / SCRATCH).exists() == (kind == "mapped")
    messages = calibrate(folder, ram_bytes=RAM_BYTES[kind])
    assert contents(folder) == undisturbed
    assert any("again" in m[2] for m in messages) == (kind == "memory")


def test_a_full_disk_is_named(
    calibrate: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states.os, "posix_fallocate", full)
    with pytest.raises(OutOfMemory, match=r"two files of \d+ bytes"):
        calibrate(tmp_path / "h", ram_bytes=0)
