"""Replacements: a decoder that answers "what if this one matrix were different?", layer after layer.

The layers are held in memory where all of them fit. Where they do not, each is read when it is needed, and what several
replacements of one layer have become goes through the later layers together, so that a model never has to fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.device import free_bytes
from compress_core.matrix import MatrixSpec
from compress_core.stream.hidden import advance, batches, embed_all
from compress_core.stream.model import StreamedModel, WeightSource
from compress_core.text.tokens import TokenWindows

#: the share of free memory that may be taken by a model that is held
_SHARE = 0.5


class Replacements:
    """The original model at the input of one layer, and what its output becomes with one of that layer's matrices
    replaced. Layers are asked for in order; an earlier one starts again from the embedding.

    Memory: all layers where they are held, else one; hidden states of all tokens three times, and once for each
    replacement that waits for the later layers.

    Args:
        hold: whether the layers stay in memory; None = where they take no more than half of what is free. The
            results are the same.
        source: of other weights than the checkpoint's: what is then called the original is that model.

    Raises:
        CalibrationError: token ids outside the vocabulary.
        NonFiniteValues: NaN in a weight (named) or in activations.
        DeviceNotFound: no such device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: TokenWindows,
        device: torch.device,
        dtype: torch.dtype,
        batch_tokens: int,
        *,
        hold: bool | None = None,
        source: WeightSource | None = None,
    ) -> None:
        self.model = StreamedModel(source or DenseWeights(checkpoint), device=device, dtype=dtype)
        tokens.check_vocabulary(self.model.vocab_size)
        self.batch_tokens = batch_tokens
        weights = sum(spec.n_weights for spec in checkpoint.matrices()) * dtype.itemsize
        self.holds = weights <= _SHARE * free_bytes(device) if hold is None else hold
        self._held: dict[int, nn.Module] = {}
        self._tokens = tokens
        self._at = 0
        self._hidden = self._embed()
        #: hidden states (N, T, D) after the last layer
        self.final = self._hidden.clone()
        for layer_idx in range(self.model.n_layers):
            with self.layer(layer_idx):
                advance(self.model, layer_idx, self.final, batch_tokens)

    @property
    def n_sequences(self) -> int:
        return self._tokens.n_windows

    @property
    def length(self) -> int:
        return self._tokens.length

    @property
    def hidden_bytes(self) -> int:
        """Of the hidden states of all tokens."""
        return self._hidden.nbytes

    def parts(self) -> Iterator[slice]:
        """Micro-batches of sequences."""
        return batches(self.n_sequences, self.length, self.batch_tokens)

    def states(self, layer_idx: int) -> Tensor:
        """Hidden states (N, T, D) of the original model before a layer; changed by the next call for another one."""
        if layer_idx < self._at:
            self._hidden, self._at = self._embed(), 0
        while self._at < layer_idx:
            with self.layer(self._at):
                advance(self.model, self._at, self._hidden, self.batch_tokens)
            self._at += 1
        return self._hidden

    @contextmanager
    def layer(self, layer_idx: int) -> Iterator[nn.Module]:
        """A layer that is loaded inside the block, and stays where all are held."""
        if not self.holds:
            with self.model.layer(layer_idx) as layer:
                yield layer
            return
        if layer_idx not in self._held:
            self._held[layer_idx] = self.model.load_layer(layer_idx)
        yield self._held[layer_idx]

    @contextmanager
    def replaced(self, layer: nn.Module, spec: MatrixSpec, weight_OI: Tensor) -> Iterator[None]:
        """Inside the block a loaded layer has another weight in this one place; memory: a copy of the original one."""
        view_OI = self.model.weight_view(layer, spec)
        original_OI = view_OI.clone()
        view_OI.copy_(weight_OI)
        try:
            yield
        finally:
            view_OI.copy_(original_OI)

    def after(self, layer_idx: int) -> Tensor:
        """Hidden states (N, T, D) after a layer that is loaded, as it is now."""
        out = self.states(layer_idx).clone()
        self._run(layer_idx, out)
        return out

    def through(self, layer_idx: int, changed: Sequence[Tensor], on_layer: Callable[[int], None] | None = None) -> None:
        """Take hidden states that left a layer through all later ones, in place; each layer is loaded once.

        Args:
            on_layer: called with the number of each layer before it runs; may raise Interrupted to stop.
        """
        for index in range(layer_idx + 1, self.model.n_layers):
            if on_layer is not None:
                on_layer(index)
            with self.layer(index):
                for hidden in changed:
                    self._run(index, hidden)

    def _run(self, layer_idx: int, hidden_NTD: Tensor) -> None:
        """Like ``advance``; what a replacement makes of the states may be NaN, which its caller tells by name."""
        for part in self.parts():
            hidden_NTD[part] = self.model.run_layer(layer_idx, hidden_NTD[part].to(self.model.device)).cpu()

    def _embed(self) -> Tensor:
        return embed_all(self.model, self._tokens.ids, self.batch_tokens)
