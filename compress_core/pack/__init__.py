"""Packed models on disk: written layer by layer, read back bit-exactly, loaded by transformers.

After ``import compress_core.pack``, ``AutoModelForCausalLM.from_pretrained(directory)`` loads a packed model. The
import itself needs neither torch nor transformers; ``layout``, ``description`` and ``header`` do without torch as well.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compress_core.pack.registration import register_with_transformers

if TYPE_CHECKING:
    from compress_core.pack.linear import CompressedLinear
    from compress_core.pack.reader import PackedModel
    from compress_core.pack.writer import write_packed_model

__all__ = ["CompressedLinear", "PackedModel", "write_packed_model"]

_HOMES = {
    "CompressedLinear": "compress_core.pack.linear",
    "PackedModel": "compress_core.pack.reader",
    "write_packed_model": "compress_core.pack.writer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_with_transformers()
