"""KL(p_ref ‖ p) between a reference model's next-token distribution and another's, from their logits."""

from __future__ import annotations

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

#: float32 logits compared at once
_LOGITS_AT_ONCE = 1 << 22
#: below this E_p[expm1(−d)], log1p of it would lose digits
_FAR = -0.9


@torch.inference_mode()
def token_kl(reference_NV: Tensor, logits_NV: Tensor, p_ref_NV: Tensor | None = None) -> Tensor:
    """KL of every position in nats, (N,) float32; ``p_ref_NV`` is softmax(reference_NV) where the caller has it.

    With d = z_ref − z: KL = E_p[d] + log E_p[e^(−d)], the second term as log1p(E_p[expm1(−d)]). Equal logits give
    exactly 0, and a small KL is not the difference of two large numbers. Where the distributions are far apart
    (E_p[e^(−d)] overflows or comes close to 0) the textbook formula takes over.
    """
    p_ref = torch.softmax(reference_NV, dim=-1) if p_ref_NV is None else p_ref_NV
    difference = reference_NV - logits_NV
    first = (p_ref * difference).sum(-1)
    change = difference.neg_().expm1_().mul_(p_ref).sum(-1)
    kl = first + torch.log1p(change)
    far = ~torch.isfinite(kl) | (change < _FAR)
    if far.any():
        log_ref = torch.log_softmax(reference_NV[far], dim=-1)
        log_q = torch.log_softmax(logits_NV[far], dim=-1)
        kl[far] = (log_ref.exp() * (log_ref - log_q)).sum(-1)
    return kl


def evaluate_kl(
    reference: WeightSource,
    candidate: WeightSource,
    windows: TokenWindows,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: Progress = silent,
) -> NDArray[np.float64]:
    """(N,) mean KL(reference ‖ candidate) over each window's positions, nats a token.

    Raises:
        CalibrationError: token ids outside the vocabulary.
        NonFiniteValues: NaN in weights, activations or the KL.
        DeviceNotFound: no such device.
    """
    models = [StreamedModel(source, device=device, dtype=find_dtype(dtype)) for source in (reference, candidate)]
    for model in models:
        windows.check_vocabulary(model.vocab_size)
    total = models[0].n_layers + models[1].n_layers + 1

    def second(done: int, total: int, message: str) -> None:
        progress(models[0].n_layers + done, total, message)

    hidden_ref = run_all(models[0], windows.ids, progress, batch_tokens=batch_tokens, total=total)
    hidden = run_all(models[1], windows.ids, second, batch_tokens=batch_tokens, total=total)
    out = np.zeros(windows.n_windows)
    step = max(1, _LOGITS_AT_ONCE // models[0].vocab_size)
    for number in range(windows.n_windows):
        for begin in range(0, windows.length, step):
            piece = slice(begin, begin + step)
            logits_ref = models[0].logits(hidden_ref[number, piece].to(models[0].device))
            logits = models[1].logits(hidden[number, piece].to(models[1].device))
            out[number] += float(token_kl(logits_ref, logits).double().sum()) / windows.length
    if not np.isfinite(out).all():
        raise NonFiniteValues(f"the KL of window {int(np.argmin(np.isfinite(out)))} is NaN or infinite")
    progress(total, total, f"compared {windows.n_windows} windows")
    return out
