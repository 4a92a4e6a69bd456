"""probe: all rates of one device within a time."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from compress_core.config import CODEBOOK_BITS, CompressionConfig
from compress_core.device import find_device
from compress_core.plan.fitting import fit_terms
from compress_core.plan.rates import Observation, Rates
from compress_core.probe.cells import CellProbe
from compress_core.probe.clock import Clock
from compress_core.probe.device import disk_rates, forward_rate, logits_rate, product_rate
from compress_core.progress import Progress, silent

#: the plan's bits of the two codebooks that studies use, and the baselines
DEFAULT_CONFIGS = (
    *(CompressionConfig(codebook="e8", b_q=b_q) for b_q in CODEBOOK_BITS["e8"]),
    *(CompressionConfig(codebook="trellis", b_q=b_q) for b_q in CODEBOOK_BITS["e8"]),
    CompressionConfig(codebook="rtn", b_q=2),
    CompressionConfig(codebook="gptq", b_q=2),
)
#: products a panel wide are far slower than large ones on a card
_SLACK = {"cpu": 1.0, "cuda": 5.0}


def probe(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    configs: Sequence[CompressionConfig] = DEFAULT_CONFIGS,
    seconds: float = 60.0,
    progress: Progress = silent,
) -> Rates:
    """Measure a device; at least every config on the smallest matrix, whatever the time.

    Args:
        folder: on the disk whose rate counts.

    Raises:
        DeviceNotFound: no such device.
        Interrupted: by ``progress``.
    """
    began = time.perf_counter()
    torch_device = find_device(device)
    clock = Clock(torch_device)
    product, forward, logits = product_rate(clock), forward_rate(clock), logits_rate(clock)
    read, write = disk_rates(folder)
    CellProbe.of(clock, configs).warm_up()
    cells = CellProbe.of(Clock(torch_device), configs)
    rounds, least = cells.rounds, len(cells.families)
    observations: list[Observation] = []
    notes: list[str] = []
    for number, (size, family) in enumerate(rounds):
        if number >= least and time.perf_counter() - began > seconds:
            notes.append(f"the probe's {seconds:.0f} s sufficed for {number} of {len(rounds)} matrices and codebooks")
            break
        progress(number, len(rounds), f"timing {family[0].codebook} on {size[0]} × {size[1]}")
        observations += cells.time((size, family))
    progress(len(rounds), len(rounds), "timed all that the time sufficed for")
    terms, uncertainty = fit_terms(observations, product, _SLACK[torch_device.type])
    return Rates(
        device_kind=torch_device.type,
        device_name=device_name(torch_device),
        source="measured",
        threads=torch.get_num_threads(),
        product=product,
        forward=forward,
        logits=logits,
        disk_read=read,
        disk_write=write,
        terms=terms,
        largest=max(found.size.out_features * found.size.in_features for found in observations),
        uncertainty=uncertainty,
        busy=cells.clock.busy,
        memory=host_memory(),
        device_memory=card_memory(torch_device),
        notes=tuple(notes),
    )


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def card_memory(device: torch.device) -> int | None:
    """Bytes of the card; None on a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def host_memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
