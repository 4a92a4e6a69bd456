"""What the machine that shall do the work has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes that are there; None = not known, then nothing is refused for it."""

    memory: int | None = None
    #: free where artefacts are written
    disk: int | None = None
    #: of the card; None on a CPU as well
    device_memory: int | None = None
    #: whose memory and disk these are
    name: str = "this machine"
