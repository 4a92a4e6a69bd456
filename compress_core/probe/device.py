"""Rates of whole devices: a large product, a layer's forward pass, logits compared, the disk.

Shapes: B sequences, T tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2Model

from compress_core.evaluate.kl import token_kl
from compress_core.precision import exact_float32
from compress_core.probe.clock import Clock

#: side of the product; widths of the layer; sequences and their length; positions and vocabulary of the logits
_PRODUCT = {"cpu": 1024, "cuda": 8192}
_WIDTHS = {"cpu": (512, 1408), "cuda": (4096, 11008)}
_HEAD_DIM = 64
_SEQUENCES = {"cpu": (4, 256), "cuda": (2, 2048)}
_LOGITS = {"cpu": (256, 8192), "cuda": (1024, 32768)}
_FILE_BYTES = 1 << 26
_TIMES = 3


@exact_float32()
def product_rate(clock: Clock) -> float:
    """float32 operations a second in a large product."""
    side = _PRODUCT[clock.device.type]
    a, b = torch.randn(2, side, side, device=clock.device)
    return 2 * side**3 / clock.best(lambda: a @ b, _TIMES)


@torch.inference_mode()
@exact_float32()
def forward_rate(clock: Clock) -> float:
    """Operations a second of a decoder layer in float32: two a weight and token, and those of attention."""
    hidden, ffn = _WIDTHS[clock.device.type]
    sequences, length = _SEQUENCES[clock.device.type]
    config = Qwen2Config(
        vocab_size=16,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=1,
        num_attention_heads=hidden // _HEAD_DIM,
        num_key_value_heads=hidden // _HEAD_DIM,
        max_position_embeddings=length,
    )
    model = Qwen2Model(config).eval().to(clock.device)
    ids = torch.zeros((sequences, length), dtype=torch.long, device=clock.device)
    operations = sequences * length * (2 * (4 * hidden**2 + 3 * hidden * ffn) + 4 * length * hidden)
    return operations / clock.best(lambda: model(ids, use_cache=False), _TIMES)


def logits_rate(clock: Clock) -> float:
    """Logits a second that are turned into probabilities and compared."""
    positions, vocab = _LOGITS[clock.device.type]
    reference, logits = torch.randn(2, positions, vocab, device=clock.device)
    p_ref = torch.softmax(reference, dim=-1)
    return positions * vocab / clock.best(lambda: token_kl(reference, logits, p_ref), _TIMES)


def disk_rates(folder: Path) -> tuple[float, float]:
    """Bytes a second read from and written to a folder's disk.

    Raises:
        OSError: nothing can be written there.
    """
    path = folder / f".probe-{os.getpid()}"
    data = os.urandom(1 << 20) * (_FILE_BYTES >> 20)
    try:
        with path.open("wb") as file:
            writing = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            writing = time.perf_counter() - writing
            # what the kernel still holds would be read from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        reading = time.perf_counter()
        path.read_bytes()
        reading = time.perf_counter() - reading
    finally:
        path.unlink(missing_ok=True)
    return _FILE_BYTES / reading, _FILE_BYTES / writing
