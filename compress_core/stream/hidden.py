"""Hidden states of all samples, moved through the layers in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_core.errors import NonFiniteValues
from compress_core.progress import Progress
from compress_core.stream.model import StreamedModel

#: tokens that go through a layer at once
DEFAULT_BATCH_TOKENS = 4096


def batches(n_sequences: int, length: int, batch_tokens: int) -> Iterator[slice]:
    """Slices of sequences with at most ``batch_tokens`` tokens each, at least one sequence."""
    step = max(1, batch_tokens // length)
    for begin in range(0, n_sequences, step):
        yield slice(begin, min(begin + step, n_sequences))


def embed_all(model: StreamedModel, ids_NT: NDArray[np.int32], batch_tokens: int = DEFAULT_BATCH_TOKENS) -> Tensor:
    """Hidden states (N, T, D) before layer 0, in host memory and the model's dtype."""
    n_sequences, length = ids_NT.shape
    hidden = torch.empty((n_sequences, length, model.hidden_size), dtype=model.dtype)
    for part in batches(n_sequences, length, batch_tokens):
        hidden[part] = model.embed(torch.from_numpy(ids_NT[part].astype(np.int64))).cpu()
    return hidden


def advance(model: StreamedModel, layer_idx: int, hidden_NTD: Tensor, batch_tokens: int = DEFAULT_BATCH_TOKENS) -> None:
    """Replace hidden states by what a loaded layer makes of them, in place.

    Raises:
        NonFiniteValues: NaN or infinity left the layer.
    """
    for part in batches(hidden_NTD.shape[0], hidden_NTD.shape[1], batch_tokens):
        hidden_NTD[part] = run_finite(model, layer_idx, hidden_NTD[part]).cpu()


def run_finite(model: StreamedModel, layer_idx: int, hidden_BTD: Tensor) -> Tensor:
    """What a loaded layer makes of some samples' states, on the model's device.

    Raises:
        NonFiniteValues: NaN or infinity left the layer.
    """
    out = model.run_layer(layer_idx, hidden_BTD.to(model.device))
    if not torch.isfinite(out).all():
        raise NonFiniteValues(
            f"the hidden states became NaN or infinite in layer {layer_idx} ({model.dtype} on {model.device}): "
            "the weights are damaged or need float32; a retry cannot help"
        )
    return out


def run_all(
    model: StreamedModel,
    ids_NT: NDArray[np.int32],
    progress: Progress,
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    total: int | None = None,
) -> Tensor:
    """Hidden states (N, T, D) after the last layer, each layer loaded once; progress after each layer."""
    hidden = embed_all(model, ids_NT, batch_tokens)
    for layer_idx in range(model.n_layers):
        with model.layer(layer_idx):
            advance(model, layer_idx, hidden, batch_tokens)
        progress(layer_idx + 1, total or model.n_layers, f"layer {layer_idx + 1} of {model.n_layers}")
    return hidden
