"""ResidentModel: a whole decoder in memory, with the hidden states at the input of every block cached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.matrix import MatrixSpec
from compress_core.stream.hidden import advance, batches, embed_all
from compress_core.stream.model import StreamedModel
from compress_core.text.tokens import TokenWindows


class ResidentModel:
    """The original model, ready to answer "what if this matrix were different?".

    Memory: all weights, (layers + 1) · tokens · hidden values of cached states on the host.

    Raises:
        CalibrationError: token ids outside the vocabulary.
        NonFiniteValues: NaN in a weight (named) or in activations.
        DeviceNotFound: no such device.
    """

    def __init__(
        self, checkpoint: Checkpoint, tokens: TokenWindows, device: torch.device, dtype: torch.dtype, batch_tokens: int
    ) -> None:
        self.checkpoint = checkpoint
        self.batch_tokens = batch_tokens
        self.model = StreamedModel(DenseWeights(checkpoint), device=device, dtype=dtype)
        tokens.check_vocabulary(self.model.vocab_size)
        self._layers: list[nn.Module] = []
        hidden = embed_all(self.model, tokens.ids, batch_tokens)
        #: hidden states (N, T, D) before each layer; the last entry is what leaves the last layer
        self.inputs = [hidden.clone()]
        for layer_idx in range(checkpoint.n_layers):
            self._layers.append(self.model.load_layer(layer_idx))
            advance(self.model, layer_idx, hidden, batch_tokens)
            self.inputs.append(hidden.clone())

    @property
    def n_sequences(self) -> int:
        return int(self.inputs[0].shape[0])

    @property
    def length(self) -> int:
        return int(self.inputs[0].shape[1])

    def parts(self) -> Iterator[slice]:
        """Micro-batches of sequences."""
        return batches(self.n_sequences, self.length, self.batch_tokens)

    @contextmanager
    def replaced(self, spec: MatrixSpec, weight_OI: Tensor) -> Iterator[None]:
        """Inside the block the model has another weight in this one place; memory: a copy of the original one."""
        view_OI = self.model.weight_view(self._layers[spec.key.layer_idx], spec)
        original_OI = view_OI.clone()
        view_OI.copy_(weight_OI)
        try:
            yield
        finally:
            view_OI.copy_(original_OI)

    def run_from(self, layer_idx: int, part: slice, *, until: int | None = None) -> Tensor:
        """Hidden states (B, T, D) of a micro-batch after layers ``layer_idx`` … ``until − 1`` (default: the last)."""
        hidden = self.inputs[layer_idx][part].to(self.model.device)
        for index in range(layer_idx, self.model.n_layers if until is None else until):
            hidden = self.model.run_layer(index, hidden)
        return hidden
