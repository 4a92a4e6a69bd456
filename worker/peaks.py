"""Peak memory of this process, host and device."""

from __future__ import annotations

import resource
import sys
from typing import TypedDict


class Peaks(TypedDict):
    """Bytes; None where there is no device."""

    peak_rss_bytes: int
    peak_gpu_bytes: int | None


def peaks() -> Peaks:
    """What this process has needed at most so far. Cheap, and safe in any thread."""
    torch = sys.modules.get("torch")
    gpu = torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_initialized() else None
    return {
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_gpu_bytes": gpu,
    }
