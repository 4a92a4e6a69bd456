"""Whether a plan fits the machine; what does not is named, with what would make it fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compress_core.plan.machine import Machine
from compress_core.plan.prices import StepPrice

#: what would make a step fit its memory
_MEMORY_CURES = {
    "calibrate": "take shorter samples, or a device with more memory: the sums of H of one layer must fit",
    "sensitivity": "take fewer or shorter sensitivity samples, or objective: error without phase 0",
    "sweep": "take a device with more memory: the largest matrix needs 4 W + 3 H",
    "compress": "take a device with more memory: the largest matrix needs 4 W + 3 H",
    "evaluate": "take shorter evaluation windows, or a device with more memory",
}
_DISK_CURES = {
    "calibrate": "calibration.keep: tokens stores no Hessians (every job that needs H computes it anew, layer by "
    "layer); calibration.dtype: bfloat16 halves the hidden states, fewer calibration.samples take less of them too",
    "sweep": "calibration.dtype: bfloat16 halves the hidden states, fewer calibration.samples take less of them too",
    "compress": "take fewer budgets, or smaller ones",
    "fetch": "make room for the original weights",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not fit."""

    #: for the disk, which all steps share, the one that takes most
    step: str
    #: "card memory", "memory" or "disk"
    what: str
    needed: int
    available: int
    cure: str

    def __str__(self) -> str:
        needs = f"needs {gigabytes(self.needed)} of {self.what}"
        who = f"the study {needs}, {self.step} most of it" if self.what == "disk" else f"{self.step} {needs}"
        return f"{who}; there are {gigabytes(self.available)}: {self.cure}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"message": str(self)}


def judge(steps: Sequence[StepPrice], machine: Machine) -> list[Finding]:
    """What does not fit; empty where everything does or where the machine is not known."""
    found = []
    for step in steps:
        cure = _MEMORY_CURES.get(step.step, "take a machine with more memory")
        if step.device_memory and machine.device_memory is not None and step.device_memory > machine.device_memory:
            found.append(Finding(step.step, "card memory", step.device_memory, machine.device_memory, cure))
        if step.memory and machine.memory is not None and step.memory > machine.memory:
            found.append(Finding(step.step, "memory", step.memory, machine.memory, cure))
    disk = disk_needed(steps)
    if machine.disk is not None and disk > machine.disk:
        most = max(steps, key=lambda step: step.disk + step.scratch)
        cure = _DISK_CURES.get(most.step, "make room")
        found.append(Finding(most.step, "disk", disk, machine.disk, cure))
    return found


def disk_needed(steps: Iterable[StepPrice]) -> int:
    """Bytes of everything that stays, and of the step that needs most room beside it."""
    rows = list(steps)
    return sum(step.disk for step in rows) + max((step.scratch for step in rows), default=0)


def gigabytes(nbytes: int) -> str:
    """For people, GB = 10⁹."""
    return f"{nbytes / 1e9:.1f} GB"
