"""How many cores torch may use in a work horse."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores of this process's affinity mask, cut to the CPU quota of its cgroup (containers)."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_CPU.read_text().split()
    except (OSError, ValueError):  # no cgroup v2 here
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def set_torch_threads() -> None:
    """Use every core that there is, unless OMP_NUM_THREADS says otherwise. In the horse, never before the fork."""
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(usable_cores())
