"""BackwardPass: gradients of what the model itself says, layer by layer from the last to the first.

On the way forward the states that enter each block are kept; on the way back each layer is read once more, run again,
and differentiated: one layer's weights are in memory at a time, and a model never has to fit.

The labels y~ are drawn from the model's own predictions, so that E[g gᵀ] is the Fisher information, the curvature of KL
at the original (Kunstner et al., arXiv 1905.12558: with the text's own tokens it would be another matrix).

Shapes: N sequences, T tokens, D hidden width, L layers, M positions at once, V vocabulary; inside a layer t tokens that
went through a matrix with I inputs and O outputs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.errors import NonFiniteValues, OutOfMemory
from compress_core.matrix import MatrixSpec
from compress_core.stream.hidden import DEFAULT_BATCH_TOKENS, advance, embed_all
from compress_core.stream.model import StreamedModel
from compress_core.stream.states import DEFAULT_RAM_BYTES
from compress_core.text.tokens import TokenWindows

#: float32 logits at once
_LOGITS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Passage:
    """Tokens of one sequence that went through a matrix."""

    #: what entered
    x_tI: Tensor
    #: gradient of Σ_t log p(y~_t) by what came out
    g_tO: Tensor


#: the passages of each of a layer's matrices, for one sequence; a matrix of an expert that saw no token has none
Passages = dict[MatrixSpec, list[Passage]]


class BackwardPass:
    """Runs forward when it is made; then ``walk`` goes back.

    Memory: one layer's weights; the states before every block, (L + 1)·N·T·D, mapped from a file where they take more
    than ``ram_bytes``; one sequence's activations inside a layer.

    Args:
        seed: of the labels.
        folder: for the file of states; None: a temporary one.
        tell: told what is being done; may raise Interrupted.

    Raises:
        CalibrationError: token ids outside the vocabulary.
        NonFiniteValues: NaN in a weight (named), in activations, or in a gradient.
        DeviceNotFound: no such device.
        OutOfMemory: no room on disk for the states.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: StreamedModel,
        tokens: TokenWindows,
        *,
        seed: int = 0,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        ram_bytes: int = DEFAULT_RAM_BYTES,
        folder: Path | None = None,
        tell: Callable[[str], None] = lambda message: None,
    ) -> None:
        tokens.check_vocabulary(model.vocab_size)
        self._checkpoint = checkpoint
        self._model = model
        self._tell = tell
        shape = (model.n_layers, tokens.n_windows, tokens.length, model.hidden_size)
        self._before_LNTD = _room(shape, model.dtype, ram_bytes, folder)
        hidden_NTD = embed_all(model, tokens.ids, batch_tokens)
        for layer_idx in range(model.n_layers):
            tell(f"forward through layer {layer_idx}")
            self._before_LNTD[layer_idx] = hidden_NTD
            with model.layer(layer_idx):
                advance(model, layer_idx, hidden_NTD, batch_tokens)
        #: gradients by the states after the layer that comes next on the way back
        self._gradient_NTD = hidden_NTD
        for number in range(tokens.n_windows):
            tell(f"labels and gradients of sequence {number}")
            self._gradient_NTD[number] = self._label_gradient(hidden_NTD[number], seed, number)

    def walk(self, on_sequence: Callable[[int, int, Passages], None], *, last: int = 0) -> Iterator[int]:
        """Go from the last layer back to layer ``last``; yields each layer's number when all sequences went through it.

        Args:
            on_sequence: called with (layer_idx, sequence, passages), the layer being loaded.
        """
        for layer_idx in range(self._model.n_layers - 1, last - 1, -1):
            with self._model.layer(layer_idx) as layer:
                for number in range(self._gradient_NTD.shape[0]):
                    self._tell(f"gradients of sequence {number} in layer {layer_idx}")
                    on_sequence(layer_idx, number, self._differentiate(layer, layer_idx, number))
            yield layer_idx

    def _differentiate(self, layer: nn.Module, layer_idx: int, number: int) -> Passages:
        """One sequence back through a loaded layer; its gradient is then that by the states before the layer."""
        device = self._model.device
        hidden_1TD = self._before_LNTD[layer_idx, number : number + 1].to(device, copy=True).requires_grad_()
        with _Tap(self._views(layer, layer_idx)) as tap:
            out_1TD = self._model.traced_layer(layer_idx, hidden_1TD)
        # passages may hold on to this very tensor, and its place is overwritten below
        out_1TD.backward(self._gradient_NTD[number : number + 1].to(device, copy=True))
        assert hidden_1TD.grad is not None
        self._gradient_NTD[number] = _finite(hidden_1TD.grad[0], f"layer {layer_idx}").cpu()
        return tap.passages

    def _views(self, layer: nn.Module, layer_idx: int) -> dict[MatrixSpec, Tensor]:
        specs = self._checkpoint.layer_matrices(layer_idx)
        return {spec: self._model.weight_view(layer, spec) for spec in specs}

    def _label_gradient(self, final_TD: Tensor, seed: int, number: int) -> Tensor:
        """Of Σ_t log p(y~_t) by the states that left the last layer; the labels depend on the sequence's number."""
        generator = torch.Generator(device="cpu").manual_seed(
            int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        )
        gradient_TD = torch.empty_like(final_TD)
        step = max(1, _LOGITS_AT_ONCE // self._model.vocab_size)
        for begin in range(0, final_TD.shape[0], step):
            piece = slice(begin, begin + step)
            hidden_MD = final_TD[piece].to(self._model.device, copy=True).requires_grad_()
            log_p_MV = torch.log_softmax(self._model.traced_logits(hidden_MD), dim=-1)
            drawn_M1 = torch.multinomial(_finite(log_p_MV.detach(), "the head").exp().cpu(), 1, generator=generator)
            log_p_MV.gather(1, drawn_M1.to(log_p_MV.device)).sum().backward()
            assert hidden_MD.grad is not None
            gradient_TD[piece] = _finite(hidden_MD.grad, "the head").cpu()
        return gradient_TD


class _Tap(TorchFunctionMode):
    """Inside the block, notes what goes in and out of the products with some weights, wherever a layer makes them.

    Weights may be stacked (experts) or fused with others (q, k and v): they are recognised by where they lie.
    """

    def __init__(self, views: dict[MatrixSpec, Tensor]) -> None:
        super().__init__()
        self._places = [(view.data_ptr(), spec) for spec, view in views.items()]
        self.passages: Passages = {spec: [] for spec in views}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear:
            given = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            self._note(given["input"], given["weight"], out)
        return out

    def _note(self, x: Tensor, weight_OI: Tensor, out: Tensor) -> None:
        begin, row_bytes = weight_OI.data_ptr(), weight_OI.shape[1] * weight_OI.element_size()
        end = begin + weight_OI.shape[0] * row_bytes
        rows = {spec: (place - begin) // row_bytes for place, spec in self._places if begin <= place < end}
        if not rows or not out.requires_grad:
            return
        x_tI = x.detach().reshape(-1, x.shape[-1])

        def keep(gradient: Tensor) -> None:
            g_tO = gradient.detach().reshape(-1, gradient.shape[-1])
            for spec, first in rows.items():
                self.passages[spec].append(Passage(x_tI, g_tO[:, first : first + spec.out_features]))

        out.register_hook(keep)


def _finite(values: Tensor, where: str) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteValues(
            f"the gradients became NaN or infinite in {where}: use dtype float32; a retry cannot help"
        )
    return values


def _room(shape: tuple[int, ...], dtype: torch.dtype, ram_bytes: int, folder: Path | None) -> Tensor:
    """In memory, or in a file that is gone when nobody uses it any more.

    Raises:
        OutOfMemory: the disk has no room.
    """
    n = int(np.prod(shape))
    nbytes = n * dtype.itemsize
    if nbytes <= ram_bytes:
        return torch.empty(shape, dtype=dtype)
    with tempfile.NamedTemporaryFile(prefix="states-", suffix=".bin", dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, nbytes)
        except OSError as error:
            raise OutOfMemory(
                f"no room for the states before each layer: {nbytes} bytes are needed beside {file.name} "
                f"({error.strerror}): take fewer windows, bfloat16, or another folder"
            ) from error
        return torch.from_file(file.name, shared=True, size=n, dtype=dtype).view(shape)
