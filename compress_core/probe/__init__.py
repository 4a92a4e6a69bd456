"""Measure what a device does in a second: the one place besides ``benchmarks/`` where time is a result.

``compress_core.plan`` makes prices of it.
"""

from __future__ import annotations

from compress_core.probe.run import DEFAULT_CONFIGS, probe

__all__ = ["DEFAULT_CONFIGS", "probe"]
