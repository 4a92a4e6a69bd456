"""Devices by name; one that is asked for and absent is an error, never a silent fallback."""

from __future__ import annotations

from pathlib import Path

import torch

from compress_core.errors import ConfigError, DeviceNotFound

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def find_device(device: str | torch.device) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:N`` as a torch device that exists.

    Raises:
        DeviceNotFound: the name means nothing to torch, or this machine has no such device.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise DeviceNotFound(f"device {device!r} is unknown: use cpu, cuda or cuda:N") from error
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            raise DeviceNotFound(f"device {device!s} was asked for, but torch sees {count} CUDA devices")
    elif found.type != "cpu":
        raise DeviceNotFound(f"device {device!s} is not supported: use cpu, cuda or cuda:N")
    return found


def find_dtype(name: str) -> torch.dtype:
    """``float32`` or ``bfloat16``, in which activations are computed.

    Raises:
        ConfigError: another name.
    """
    if name not in _DTYPES:
        raise ConfigError(f"dtype {name!r} is unknown: choose one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def free_bytes(device: torch.device) -> int:
    """Memory that a device has left: of a card, or of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    raise DeviceNotFound("this kernel does not tell how much memory is available (/proc/meminfo)")
