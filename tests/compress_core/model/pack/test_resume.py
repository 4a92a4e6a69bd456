"""A compression that was killed goes on after its last finished layer and ends with the same bytes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress_core.calibrate.calibration import Calibration
from compress_core.calibrate.run import keep_tokens
from compress_core.calibrate.streamed import StreamedCalibration
from compress_core.checkpoint import open_checkpoint
from compress_core.config import CompressionConfig
from compress_core.errors import Interrupted, WorkInProgress
from compress_core.matrix import MatrixKey
from compress_core.pack.layout import weight_files
from compress_core.pack.writer import write_packed_model
from compress_core.text.tokens import TokenWindows

MENU = (
    CompressionConfig(b_q=2, codebook="gptq"),
    CompressionConfig(b_q=4, codebook="rtn"),
    CompressionConfig(b_q=3, rank=2, codebook="scalar", iterations=1),
)
ONE_FILE, FILES = 10**9, 1000
PATIENCE_S = 120.0
#: compresses until it is in the second layer, says so and waits to be killed
VICTIM = """
import signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_resume import compress
model, out, work, shard_bytes = Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5])

def progress(done, total, message):
    if done == 9:
        (out.parent / "waiting").touch()
        signal.pause()

compress(model, out, work_dir=work, shard_bytes=shard_bytes, progress=progress)
"""


class Source:
    """H of every matrix, and which were asked for."""

    def __init__(self, path: Path, name: str = "a") -> None:
        self.info = self
        self.name = name
        self.checkpoint = open_checkpoint(path)
        self.asked: list[MatrixKey] = []

    def to_json(self) -> str:
        return self.name

    def hessian(self, key: MatrixKey) -> torch.Tensor:
        self.asked.append(key)
        width = self.checkpoint.matrix(key).in_features
        return torch.diag(1 + torch.arange(width) % (3 + len(self.name))).float()


def compress(model: Path, out: Path, source: Any = None, menu: Any = MENU, **options: Any) -> bytes:
    checkpoint = open_checkpoint(model)
    items = {spec.key: menu[n % len(menu)] for n, spec in enumerate(checkpoint.matrices())}
    assert write_packed_model(checkpoint, source, items, out, **options).exact
    return b"".join(file.name.encode() + file.read_bytes() for file in weight_files(out))


def stop_at(matrix: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, message: str) -> None:
        if done == matrix:
            raise Interrupted("cancelled")

    return progress


@pytest.mark.slow
@pytest.mark.parametrize("shard_bytes", [ONE_FILE, FILES], ids=["one file", "several"])
def test_kill_9_in_mid_compression(qwen2: Path, tmp_path: Path, repo: Path, shard_bytes: int) -> None:
    undisturbed = compress(qwen2, tmp_path / "undisturbed", shard_bytes=shard_bytes)
    out, work = tmp_path / "out", tmp_path / "work"
    arguments = [str(Path(__file__).parent), str(qwen2), str(out), str(work), str(shard_bytes)]
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, *arguments],
        env=os.environ | {"PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"},
        cwd=repo,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (tmp_path / "waiting").exists():
            assert victim.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline, "it never came to the second layer"
            time.sleep(0.05)
        with pytest.raises(WorkInProgress, match="another process compresses in"):
            compress(qwen2, out, work_dir=work, shard_bytes=shard_bytes)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not out.exists()
    resumed: list[tuple[int, int]] = []
    again = compress(
        qwen2, out, work_dir=work, shard_bytes=shard_bytes, on_resume=lambda *counts: resumed.append(counts)
    )
    assert resumed == [(7, 21)]
    assert again == undisturbed
    assert {file.name for file in out.iterdir()} == {file.name for file in (tmp_path / "undisturbed").iterdir()}
    assert not work.exists()


@pytest.mark.parametrize("shard_bytes", [ONE_FILE, FILES], ids=["one file", "several"])
def test_finished_layers_are_neither_compressed_nor_asked_for_again(
    qwen2: Path, tmp_path: Path, shard_bytes: int
) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    undisturbed = compress(qwen2, tmp_path / "undisturbed", Source(qwen2), shard_bytes=shard_bytes)
    measured: list[MatrixKey] = []
    for last, first_layer in ((8, 0), (15, 1), (99, 2)):
        source = Source(qwen2)
        options: dict[str, Any] = {
            "shard_bytes": shard_bytes,
            "work_dir": work,
            "on_measurement": lambda key, _: measured.append(key),
        }
        if last < 21:
            with pytest.raises(Interrupted):
                compress(qwen2, out, source, progress=stop_at(last), **options)
            assert not out.exists()
        else:
            assert compress(qwen2, out, source, **options) == undisturbed
        assert source.asked[0] == MatrixKey(first_layer, "q")
    keys = [spec.key for spec in open_checkpoint(qwen2).matrices()]
    # the first matrix of a layer that was interrupted is compressed twice, finished layers once
    assert measured == [*keys[:8], *keys[7:15], *keys[14:]]
    assert not work.exists()


def test_what_belongs_to_other_work_is_discarded(qwen2: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    resumed: list[int] = []

    def begin(source: Source, menu: Any = MENU) -> None:
        with pytest.raises(Interrupted):
            compress(
                qwen2,
                tmp_path / "out",
                source,
                menu,
                work_dir=work,
                progress=stop_at(16),
                on_resume=lambda done, _: resumed.append(done),
            )

    begin(Source(qwen2, "a"))
    assert resumed == []
    begin(Source(qwen2, "a"))
    assert resumed == [14]
    begin(Source(qwen2, "other H"))
    begin(Source(qwen2, "a"))  # gone since then
    assert resumed == [14]
    begin(Source(qwen2, "a"), MENU[:2])
    assert resumed == [14]
    (folder,) = (path for path in work.iterdir() if path.is_dir())
    truncated = sorted(folder.iterdir())[0]
    truncated.write_bytes(truncated.read_bytes()[:-1])
    (folder / "..layer-00002.safetensors.77.tmp").write_bytes(b"half")
    fresh = compress(qwen2, tmp_path / "fresh", Source(qwen2, "a"), MENU[:2])
    assert compress(qwen2, tmp_path / "out", Source(qwen2, "a"), MENU[:2], work_dir=work) == fresh
    assert not work.exists()


def test_a_folder_in_which_somebody_works_is_refused(qwen2: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with (work / "lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(WorkInProgress, match="another process compresses in"):
            compress(qwen2, tmp_path / "out", work_dir=work)
    assert compress(qwen2, tmp_path / "out", work_dir=work) == compress(qwen2, tmp_path / "plain")


def test_h_that_is_computed_meanwhile_gives_the_same_bytes(
    qwen2: Path, qwen2_calibration: Calibration, random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    """H recomputed layer by layer, by a first call that is interrupted and a second one that goes on."""
    checkpoint = open_checkpoint(qwen2)
    keep_tokens(checkpoint, random_windows(12, 20), tmp_path / "tokens", source="random", seed=0)
    stored = compress(qwen2, tmp_path / "stored", qwen2_calibration)

    def streamed() -> StreamedCalibration:
        return StreamedCalibration.open(tmp_path / "tokens", checkpoint, tmp_path / "scratch")

    with pytest.raises(Interrupted):
        compress(qwen2, tmp_path / "out", streamed(), work_dir=tmp_path / "work", progress=stop_at(10))
    resumed: list[int] = []
    again = compress(
        qwen2,
        tmp_path / "out",
        streamed(),
        work_dir=tmp_path / "work",
        on_resume=lambda done, _: resumed.append(done),
    )
    assert resumed == [7]
    assert again == stored
