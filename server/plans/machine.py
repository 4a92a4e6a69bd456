"""Memory and free disk of the server's machine, where the workers of a small installation run too."""

from __future__ import annotations

import os
from pathlib import Path

from compress_core.plan import Machine, Rates
from results_db.disk import free_bytes
from results_db.settings import Settings

#: limits of a container's memory, of cgroups 2 and 1
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def this_machine(settings: Settings, rates: Rates | None) -> Machine:
    """What there is for a plan on a device with these rates."""
    memory = rates.memory if rates is not None and rates.memory is not None else host_memory()
    return Machine(
        memory=memory,
        disk=free_bytes(settings.var_dir),
        device_memory=None if rates is None else rates.device_memory,
    )


def host_memory() -> int:
    """Bytes of memory: of the machine, or of the container's limit where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [
        int(text) for path in _LIMITS if Path(path).exists() and (text := Path(path).read_text().strip()).isdigit()
    ]
    return min([physical, *limits])
