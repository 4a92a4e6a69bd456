"""A probe of this machine gives rates for what it was asked, and stops in time. How fast it is does not matter here."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from compress_core import rooted_hessian
from compress_core.config import CompressionConfig
from compress_core.errors import DeviceNotFound, Interrupted
from compress_core.evaluate import reference
from compress_core.plan import footprint, operations
from compress_core.plan.operations import Size
from compress_core.plan.rates import Rates
from compress_core.probe import cells, device, probe
from compress_core.probe.cells import CellProbe
from compress_core.probe.clock import Clock
from compress_core.sensitivity import measure
from compress_core.stream import hidden, states

CONFIGS = [
    CompressionConfig(codebook="scalar", b_q=2, rank=4),
    CompressionConfig(codebook="scalar", b_q=3, rank=8),
    CompressionConfig(codebook="rtn", b_q=3),
    CompressionConfig(codebook="gptq", b_q=3),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices that take no time."""
    monkeypatch.setitem(cells._SIZES, "cpu", ((16, 32), (32, 32), (16, 48), (24, 64)))
    monkeypatch.setattr(cells, "_WARM_UP", (16, 16))
    monkeypatch.setitem(device._PRODUCT, "cpu", 64)
    monkeypatch.setitem(device._WIDTHS, "cpu", (64, 96))
    monkeypatch.setitem(device._SEQUENCES, "cpu", (1, 16))
    monkeypatch.setitem(device._LOGITS, "cpu", (8, 64))
    monkeypatch.setattr(device, "_FILE_BYTES", 1 << 20)


def test_a_probe_prices_what_it_was_asked(tmp_path: Path) -> None:
    steps: list[str] = []
    rates = probe(tmp_path, configs=CONFIGS, progress=lambda done, total, message: steps.append(message))
    assert (rates.device_kind, rates.source, rates.device_memory) == ("cpu", "measured", None)
    assert rates.memory
    assert rates.busy
    assert 0 < rates.busy <= 1.5
    assert rates.largest == 24 * 64
    for rate in (rates.product, rates.forward, rates.logits, rates.disk_read, rates.disk_write):
        assert 0 < rate < math.inf
    size = Size(1536, 8960, 64)
    for config in CONFIGS:
        assert rates.knows(config)
    for kind in ("input", "matrix", "measure", "rtn", "gptq"):
        assert rates.seconds(kind, size) > 0
    for kind in ("feedback", "start", "rank"):
        assert rates.seconds(kind, size, CONFIGS[0]) > 0
    assert any("scalar" in step for step in steps)
    assert list(tmp_path.iterdir()) == []
    assert Rates.from_dict(rates.to_dict()) == rates


def test_a_probe_out_of_time_still_times_everything_once(tmp_path: Path) -> None:
    rates = probe(tmp_path, configs=CONFIGS, seconds=0.0)
    assert all(rates.knows(config) for config in CONFIGS)
    assert rates.largest == 16 * 32
    assert "sufficed for 3 of" in rates.notes[0]


def test_a_probe_can_be_stopped(tmp_path: Path) -> None:
    def stop(done: int, total: int, message: str) -> None:
        if done:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        probe(tmp_path, configs=CONFIGS, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_device_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotFound):
        probe(tmp_path, device="cuda:7")


def test_a_family_is_timed_as_a_sweep_would_run_it() -> None:
    timer = CellProbe.of(Clock(torch.device("cpu")), CONFIGS[:2])
    assert timer.ranks == (4, 8)
    ((size, family), *_) = timer.rounds
    found = timer.time((size, family))
    kinds = [piece.kind for piece in found]
    # one input, one matrix, one feedback; two starts; two ranks of both bits; each measured, the first one to warm up
    assert kinds.count("input") == kinds.count("matrix") == kinds.count("feedback") == 1
    assert (kinds.count("start"), kinds.count("rank"), kinds.count("measure")) == (2, 4, 5)
    assert [piece.b_q for piece in found if piece.kind == "rank"] == [2, 3, 2, 3]


def test_plans_know_the_limits_of_those_who_compute() -> None:
    assert operations.EXACT_WIDTH == rooted_hessian.EXACT_WIDTH
    assert footprint.HIDDEN_LIMIT == states.DEFAULT_RAM_BYTES
    assert footprint.REFERENCE_LIMIT == reference.KEEP_BYTES
    assert footprint.TOP_K == reference.TOP_K
    assert footprint.WAITING_LIMIT == measure._WAITING_LIMIT
    assert footprint.BATCH_TOKENS == hidden.DEFAULT_BATCH_TOKENS
