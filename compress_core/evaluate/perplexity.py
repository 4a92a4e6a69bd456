"""Perplexity in the field's standard protocol: fixed windows over the joined text, no overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_core.device import find_dtype
from compress_core.errors import NonFiniteValues
from compress_core.progress import Progress, silent
from compress_core.stream.hidden import DEFAULT_BATCH_TOKENS, run_all
from compress_core.stream.model import StreamedModel, WeightSource
from compress_core.text.tokens import TokenWindows

#: float32 logits held at once
_LOGITS_AT_ONCE = 1 << 25


@dataclass(frozen=True, eq=False)
class WindowLosses:
    """Negative log-likelihood of N windows: what every interval is computed from."""

    #: (N,) nats, summed over the predicted tokens of the window
    nll: NDArray[np.float64]
    #: (N,) predicted tokens: length − 1 each, the first has nothing before it
    n_tokens: NDArray[np.int64]
    #: (N,) UTF-8 bytes of the predicted text
    n_bytes: NDArray[np.int64]
    #: hash of the exact token ids; losses of two models compare only where it is equal
    token_sha256: str

    @property
    def nats_per_token(self) -> float:
        return float(self.nll.sum() / self.n_tokens.sum())

    @property
    def perplexity(self) -> float:
        """exp(mean negative log-likelihood a token)."""
        return float(np.exp(self.nats_per_token))

    @property
    def bits_per_byte(self) -> float:
        """Independent of the tokenizer; NaN-free because windows hold text."""
        return float(self.nll.sum() / (np.log(2) * self.n_bytes.sum()))


def evaluate_perplexity(
    source: WeightSource,
    windows: TokenWindows,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: Progress = silent,
) -> WindowLosses:
    """Losses of a model (``DenseWeights(checkpoint)`` or ``PackedModel``) on fixed windows.

    Raises:
        CalibrationError: token ids outside the vocabulary.
        NonFiniteValues: NaN in weights, activations or losses.
        DeviceNotFound: no such device.
    """
    model = StreamedModel(source, device=device, dtype=find_dtype(dtype))
    windows.check_vocabulary(model.vocab_size)
    total = model.n_layers + 1
    hidden = run_all(model, windows.ids, progress, batch_tokens=batch_tokens, total=total)
    targets = torch.from_numpy(windows.ids.astype(np.int64))
    nll = np.empty(windows.n_windows)
    for number in range(windows.n_windows):
        nll[number] = _window_nll(model, hidden[number, :-1], targets[number, 1:])
    if not np.isfinite(nll).all():
        raise NonFiniteValues(f"the loss of window {int(np.argmin(np.isfinite(nll)))} is NaN or infinite")
    progress(total, total, f"scored {windows.n_windows} windows")
    n_tokens = np.full(windows.n_windows, windows.length - 1, dtype=np.int64)
    return WindowLosses(nll, n_tokens, windows.n_bytes, windows.sha256)


@torch.inference_mode()
def _window_nll(model: StreamedModel, hidden_TD: Tensor, targets_T: Tensor) -> float:
    total = 0.0
    step = max(1, _LOGITS_AT_ONCE // model.vocab_size)
    for begin in range(0, targets_T.shape[0], step):
        logits = model.logits(hidden_TD[begin : begin + step].to(model.device))
        targets = targets_T[begin : begin + step].to(model.device)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        total += float(losses.double().sum())
    return total
