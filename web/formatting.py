"""Numbers, sizes and times as people read them. Every function takes None and answers an en dash."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

from compress_core.config import BASELINE_CODEBOOKS, CompressionConfig

NOTHING = "–"
_MINUS = "−"
#: what a stored config that leaves a field out means by that
CONFIG_DEFAULTS = {name: value for name, value in CompressionConfig(b_q=2).to_dict().items() if name != "b_q"}


def number(value: float | None, digits: int = 4) -> str:
    """``digits`` significant digits, scientific beyond 10⁵ or below 10⁻³: 12.34, 0.004567, 1.23e−5."""
    if value is None or isinstance(value, bool) or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10 ** max(digits, 5) or size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", _MINUS)
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:.{decimals}f}".replace("-", _MINUS)


def short(value: float | None, digits: int = 4) -> str:
    """``number`` without the zeros at its end, for thresholds and counts: 3, 0.7, 23.16."""
    text = number(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def percent(fraction: float | None, digits: int = 2) -> str:
    """A signed percentage of a fraction: 0.0123 → +1.23 %."""
    if fraction is None or not math.isfinite(fraction):
        return NOTHING
    return f"{100 * fraction:+.{digits}f} %".replace("-", _MINUS)


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return NOTHING if value is None else f"{int(value):,}".replace(",", "\u202f")


def size(nbytes: float | None) -> str:
    """Bytes in decimal units (GB = 10⁹)."""
    if nbytes is None:
        return NOTHING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(nbytes) >= scale:
            return f"{nbytes / scale:.{3 if unit != 'kB' else 1}f} {unit}"
    return f"{int(nbytes)} B"


def duration(seconds: float | None) -> str:
    """4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 0.05:
        return "< 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def between(start: datetime | None, end: datetime | None) -> str:
    """The time from start to end."""
    return NOTHING if start is None or end is None else duration((end - start) / timedelta(seconds=1))


def moment(when: datetime | None) -> str:
    """UTC to the second; the page turns it into local time."""
    return NOTHING if when is None else f"{when:%Y-%m-%d %H:%M:%S} UTC"


def interval(low: float | None, high: float | None, digits: int = 4) -> str:
    """[low, high]; empty where either is missing."""
    return "" if low is None or high is None else f"[{number(low, digits)}, {number(high, digits)}]"


def config_label(config: dict[str, Any]) -> str:
    """A short name of a config: ``trellis 2b r32 f4``, ``trellis/4096 2b r0``; fields only where they say something."""
    config = CONFIG_DEFAULTS | config
    bits, rank, codebook = config["factor_bits"], config["rank"], config["codebook"]
    factors = "/".join(map(str, bits)) if isinstance(bits, list | tuple) else str(bits)
    low_rank = f" r{rank} f{factors}" if rank else ("" if codebook in BASELINE_CODEBOOKS else " r0")
    size = f"/{config['states']}" if codebook == "trellis" and config["states"] != CompressionConfig.states else ""
    return f"{codebook}{size} {config['b_q']}b{low_rank}"
