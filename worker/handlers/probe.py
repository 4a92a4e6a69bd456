"""probe: what this worker's device does in a second, for plans."""

from __future__ import annotations

import socket
import time
from typing import Any

from compress_core import NUMERICS_VERSION, CompressionConfig
from compress_core.probe import DEFAULT_CONFIGS, probe
from results_db.params import ProbeParams
from results_db.recording import record_throughput
from worker.context import JobContext


def run(params: ProbeParams, context: JobContext) -> dict[str, Any]:
    """Result: {throughput_id, device_name, seconds}."""
    configs = [CompressionConfig.from_dict(values) for values in params.configs or ()] or DEFAULT_CONFIGS
    context.progress.begin(1, message="timing products, a layer and the disk")
    context.settings.var_dir.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    rates = probe(
        context.settings.var_dir,
        device=context.device.torch_name,
        configs=configs,
        seconds=params.seconds,
        progress=context.progress,
    )
    seconds = time.perf_counter() - began
    throughput_id = context.recorder.write(
        lambda session, claim: record_throughput(
            session,
            claim,
            hostname=socket.gethostname(),
            device_kind=rates.device_kind,
            device_name=rates.device_name,
            threads=rates.threads,
            rates=rates.to_dict(),
            numerics_version=NUMERICS_VERSION,
            seconds=seconds,
        )
    )
    return {"throughput_id": throughput_id, "device_name": rates.device_name, "seconds": seconds}
