"""Which device this worker owns: "cpu", or one GPU found by name, UUID or number through NVML.

The parent never touches CUDA (a CUDA context does not survive a fork): NVML answers without one. The chosen GPU is
then the only one that CUDA shows to the work horse.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from worker.card_lock import CardLock
from worker.errors import DeviceUnavailable

log = logging.getLogger(__name__)

_NUMBER = re.compile(r"^cuda(?::(\d+))?$")


@dataclass(frozen=True, slots=True)
class Device:
    """A device and how torch calls it once CUDA_VISIBLE_DEVICES is set."""

    #: as asked for
    requested: str
    #: "cpu" or "cuda"
    kind: str
    #: "cpu" or "cuda:0"
    torch_name: str
    uuid: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """What NVML says of a GPU."""

    index: int
    uuid: str
    name: str
    #: processes that hold its memory, for example "python (pid 1234, 812 MB)"
    holders: tuple[str, ...]
    #: bytes of its memory, all processes together; 0 where the driver does not say
    memory_used: int = 0
    memory_total: int = 0

    def __str__(self) -> str:
        return f"cuda:{self.index} = {self.name} ({self.uuid})"


CPU = Device("cpu", "cpu", "cpu")


def list_gpus() -> list[Gpu]:
    """The GPUs of this machine, in NVML's order; empty where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("NVML does not start: %s", error)
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return [
            Gpu(
                number,
                _text(pynvml.nvmlDeviceGetUUID(handle)),
                _text(pynvml.nvmlDeviceGetName(handle)),
                tuple(_holder(process) for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
                *_memory(handle),
            )
            for number, handle in enumerate(handles)
        ]
    finally:
        pynvml.nvmlShutdown()


def matching(requested: str, gpus: list[Gpu]) -> list[Gpu]:
    """The GPUs that a request means: "cuda" any, "cuda:1" by number, "GPU-…" by UUID, else by part of the name.

    Raises:
        DeviceUnavailable: none does; names what is there.
    """
    number = _NUMBER.match(requested)
    if number:
        found = [gpu for gpu in gpus if number[1] is None or gpu.index == int(number[1])]
    elif requested.startswith("GPU-"):
        found = [gpu for gpu in gpus if gpu.uuid.startswith(requested)]
    else:
        found = [gpu for gpu in gpus if requested.casefold() in gpu.name.casefold()]
    if found:
        return found
    there = "; ".join(map(str, gpus)) if gpus else "no GPU that NVML can see"
    raise DeviceUnavailable(
        f"the device {requested!r} is not here. This machine has the cpu and {there}. "
        "Set BITBUDGET_DEVICE to one of these; a worker never falls back to the cpu by itself"
    )


@contextmanager
def own_device(requested: str, lock_dirs: Sequence[Path]) -> Iterator[Device]:
    """Hold the device for the life of the block; forked children hold the same locks, one in each folder.

    Of several GPUs that match, the first that no other worker owns is taken. CUDA_VISIBLE_DEVICES is set to it.

    Raises:
        DeviceUnavailable: absent, owned by another worker, or its lock cannot be used.
    """
    if requested == "cpu":
        yield CPU
        return
    candidates = matching(requested, list_gpus())
    owners = []
    for gpu in candidates:
        lock = CardLock(gpu.uuid, lock_dirs)
        if not lock.take():
            owners.append(f"{gpu}: {lock.owner}")
            continue
        with lock:
            if gpu.holders:
                log.warning("%s is also used by %s", gpu, ", ".join(gpu.holders))
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu.uuid
            yield Device(requested, "cuda", "cuda:0", gpu.uuid, gpu.name)
        return
    raise DeviceUnavailable(f"every GPU that matches {requested!r} belongs to another worker: {'; '.join(owners)}")


def _holder(process: object) -> str:
    pid = getattr(process, "pid", None)
    used = getattr(process, "usedGpuMemory", None)
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # gone meanwhile, or in another pid namespace
        name = "a process"
    return f"{name} (pid {pid}, {'unknown memory' if used is None else f'{used // 10**6} MB'})"


def _memory(handle: object) -> tuple[int, int]:
    """Bytes used and in all; zeros where the driver does not say: cards that share the host's memory have none."""
    import pynvml

    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError_NotSupported:
        return 0, 0
    return int(memory.used), int(memory.total)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def main() -> int:
    """``python -m worker.device DEVICE``: what that means here, as JSON on stdout, for ``bitbudget doctor``.

    {"gpus": [every GPU], "matching": [indices], "trouble": why none matches, or null}
    """
    gpus = list_gpus()
    found: list[Gpu] = []
    trouble = None
    try:
        found = [] if sys.argv[1] == "cpu" else matching(sys.argv[1], gpus)
    except DeviceUnavailable as error:
        trouble = str(error)
    facts = {"gpus": [asdict(gpu) for gpu in gpus], "matching": [gpu.index for gpu in found], "trouble": trouble}
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
