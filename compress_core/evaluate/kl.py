"""KL(p_ref ‖ p) between a reference model's next-token distribution and another's, from their logits."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.inference_mode()
def token_kl(reference_NV: Tensor, logits_NV: Tensor, p_ref_NV: Tensor | None = None) -> Tensor:
    """KL of every position in nats, (N,) float32; ``p_ref_NV`` is softmax(reference_NV) where the caller has it.

    With d = z_ref − z: KL = E_p[d] + log E_p[e^(−d)], the second term as log1p(E_p[expm1(−d)]). Equal logits give
    exactly 0, and a small KL is not the difference of two large numbers. Where e^(−d) overflows, the textbook
    formula takes over.
    """
    p_ref = torch.softmax(reference_NV, dim=-1) if p_ref_NV is None else p_ref_NV
    difference = reference_NV - logits_NV
    first = torch.linalg.vecdot(p_ref, difference)
    second = torch.log1p(torch.linalg.vecdot(p_ref, difference.neg_().expm1_()))
    kl = first + second
    bad = ~torch.isfinite(kl)
    if bad.any():
        log_ref = torch.log_softmax(reference_NV[bad].double(), dim=-1)
        log_q = torch.log_softmax(logits_NV[bad].double(), dim=-1)
        kl[bad] = (log_ref.exp() * (log_ref - log_q)).sum(-1).float()
    return kl
