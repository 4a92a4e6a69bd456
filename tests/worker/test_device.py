"""Choosing a device: by name, UUID or number; absent or taken is an error that says what is there."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from worker import device as module
from worker.device import CPU, Gpu, matching, own_device
from worker.errors import DeviceUnavailable

GPUS = [
    Gpu(0, "GPU-aaaa-1", "NVIDIA GeForce RTX 3090", ("python (pid 7, 812 MB)",)),
    Gpu(1, "GPU-bbbb-2", "NVIDIA GeForce RTX 3090", ()),
    Gpu(2, "GPU-cccc-3", "NVIDIA H100 80GB HBM3", ()),
]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """Three GPUs: what NVML would say on a machine that has them."""
    monkeypatch.setattr(module, "list_gpus", lambda: GPUS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return GPUS


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("cuda", [0, 1, 2]),
        ("cuda:2", [2]),
        ("RTX 3090", [0, 1]),
        ("rtx 3090", [0, 1]),
        ("H100", [2]),
        ("GPU-bbbb-2", [1]),
        ("GPU-c", [2]),
    ],
)
def test_matching(requested: str, expected: list[int]) -> None:
    assert [gpu.index for gpu in matching(requested, GPUS)] == expected


@pytest.mark.parametrize("requested", ["cuda:3", "RTX 4090", "GPU-dddd", "gpu", "cpu0"])
def test_an_absent_gpu(requested: str) -> None:
    with pytest.raises(DeviceUnavailable, match=r"RTX 3090 \(GPU-aaaa-1\).*never falls back"):
        matching(requested, GPUS)


def test_no_gpu_at_all() -> None:
    with pytest.raises(DeviceUnavailable, match="no GPU that NVML can see"):
        matching("cuda", [])


def test_the_cpu_needs_no_lock(tmp_path: Path) -> None:
    with own_device("cpu", [tmp_path / "locks"]) as device:
        assert device is CPU
    assert not (tmp_path / "locks").exists()


def test_the_chosen_gpu_is_the_only_one_that_cuda_sees(
    gpus: list[Gpu], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with own_device("3090", [tmp_path]) as device:
        assert (device.kind, device.torch_name, device.uuid) == ("cuda", "cuda:0", "GPU-aaaa-1")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa-1"
        assert "python (pid 7, 812 MB)" in caplog.text


def test_one_worker_a_gpu(gpus: list[Gpu], tmp_path: Path) -> None:
    with own_device("3090", [tmp_path]) as first, own_device("3090", [tmp_path]) as second:
        assert (first.uuid, second.uuid) == ("GPU-aaaa-1", "GPU-bbbb-2")
        with pytest.raises(DeviceUnavailable, match=f"locked by pid {os.getpid()}"), own_device("3090", [tmp_path]):
            raise AssertionError("two workers on one GPU")
    with own_device("3090", [tmp_path]) as device:
        assert device.uuid == "GPU-aaaa-1"


def test_a_child_keeps_the_lock_when_its_parent_is_gone(gpus: list[Gpu], tmp_path: Path) -> None:
    """A horse that outlives its parent for a moment still owns the GPU."""
    with own_device("H100", [tmp_path]):
        inherited = os.dup(
            next(int(fd) for fd in os.listdir("/proc/self/fd") if _is(fd, tmp_path / "bitbudget-GPU-cccc-3.lock"))
        )
    with pytest.raises(DeviceUnavailable), own_device("H100", [tmp_path]):
        raise AssertionError("the lock is still held")
    os.close(inherited)
    with own_device("H100", [tmp_path]):
        pass


def _is(fd: str, path: Path) -> bool:
    try:
        return os.path.samefile(f"/proc/self/fd/{fd}", path)
    except OSError:
        return False


def test_the_lock_is_a_kernel_lock(gpus: list[Gpu], tmp_path: Path) -> None:
    """A lock file left by a dead worker holds nothing."""
    (tmp_path / "bitbudget-GPU-cccc-3.lock").write_text("12345")
    with own_device("H100", [tmp_path]) as device, (tmp_path / "bitbudget-GPU-cccc-3.lock").open() as other:
        assert device.uuid == "GPU-cccc-3"
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_module_says_what_a_device_means_here(
    gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["worker.device", "RTX 3090"])
    assert module.main() == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["matching"], facts["trouble"]) == ([0, 1], None)
    assert facts["gpus"][0]["holders"] == ["python (pid 7, 812 MB)"]
    monkeypatch.setattr(sys, "argv", ["worker.device", "RTX 9999"])
    assert module.main() == 0
    assert "RTX 3090" in json.loads(capsys.readouterr().out)["trouble"]


def test_a_card_whose_driver_does_not_tell_its_memory_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on machines where card and host share their memory."""
    import pynvml

    def refuse(_handle: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    says = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetUUID": "GPU-aaaa-1",
        "nvmlDeviceGetName": b"NVIDIA GB10",
        "nvmlDeviceGetComputeRunningProcesses": [],
    }
    for name, value in says.items():
        monkeypatch.setattr(pynvml, name, lambda *_, value=value: value)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", refuse)
    assert module.list_gpus() == [Gpu(0, "GPU-aaaa-1", "NVIDIA GB10", ())]
