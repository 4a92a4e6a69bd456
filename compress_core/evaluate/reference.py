"""Reference: the original model's next-token distributions on fixed windows, which candidates are compared with.

Where all logits fit they are kept, and KL is exact (``token_kl``). Where they do not, k log-probabilities of each
position are kept, its largest, with the ids of their tokens; all other tokens are one more bucket, the tail. KL is
then that of k + 1 buckets: never above the full one (data processing inequality), and short of it by what the two
models disagree about inside the tail alone. EvoPress (arXiv 2410.14649) finds 512 to be as good as all.

    reference = Reference(model, final_NTD, ids_NT)     # final_NTD: hidden states after the original's last layer
    losses = reference.losses(candidate_NTD)            # of a candidate with the same norm and head
    losses.kl_N, losses.nll_N, reference.nll_N          # KL: mean, nats a token; NLL: sum over length − 1 tokens

Shapes: N windows, T tokens, D hidden width, M positions at once, V vocabulary, k largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_core.evaluate.kl import token_kl
from compress_core.stream.model import StreamedModel

#: logits (float32) of a model that are in memory at once
_LOGITS_AT_ONCE = 1 << 22
#: logits and probabilities of all positions are kept if they take no more than this
KEEP_BYTES = 1 << 31
#: log-probabilities of a position that are kept otherwise
TOP_K = 1024
#: d = log p − log q below minus this: e^(−d) may overflow, and p·(e^(−d) − 1) is q − p
_FAR = 50.0


@dataclass(frozen=True, eq=False)
class SequenceLosses:
    """A candidate on each window."""

    #: (N,) mean KL(reference ‖ candidate) over the window's positions, nats a token; may be NaN: the caller names it
    kl_N: NDArray[np.float64]
    #: (N,) negative log-likelihood of the window's tokens but the first, nats, summed; None without token ids
    nll_N: NDArray[np.float64] | None


class Reference:
    """What the original says at every position.

    Args:
        model: gives the logits of hidden states that left the last layer, of the original and of candidates.
        final_NTD: the original's; not kept.
        ids_NT: the windows' tokens, for losses of the text itself.
        keep_bytes: how much exact logits may take.
        top_k: log-probabilities of a position that are kept where exact logits would take more.
        on_piece: called with (positions done, of all) while logits are computed; may raise Interrupted to stop.
    """

    def __init__(
        self,
        model: StreamedModel,
        final_NTD: Tensor,
        ids_NT: NDArray[np.int32] | None = None,
        *,
        keep_bytes: int | None = None,
        top_k: int = TOP_K,
        on_piece: Callable[[int, int], None] | None = None,
    ) -> None:
        self._model = model
        self.n_sequences, self.length = final_NTD.shape[0], final_NTD.shape[1]
        n_positions = self.n_sequences * self.length
        limit = KEEP_BYTES if keep_bytes is None else keep_bytes
        #: whether KL is that of the whole vocabulary
        self.exact = 2 * 4 * n_positions * model.vocab_size <= limit
        self._top_k = min(top_k, model.vocab_size)
        self._next = None if ids_NT is None else _next_tokens(ids_NT)
        self._exact: dict[int, tuple[Tensor, Tensor]] = {}
        self._buckets: dict[int, tuple[Tensor, Tensor]] = {}
        nll_M = np.zeros(n_positions)
        for piece, logits_MV in self._pieces(final_NTD, on_piece):
            if self.exact:
                self._exact[piece.start] = (logits_MV, torch.softmax(logits_MV, dim=-1))
            else:
                ids_Mk = logits_MV.topk(self._top_k, dim=-1).indices
                self._buckets[piece.start] = (bucket_log_probs(logits_MV, ids_Mk).cpu(), ids_Mk.to(torch.int32).cpu())
            if self._next is not None:
                nll_M[piece] = _nll(logits_MV, self._next[piece])
        #: (N,) the original's own loss on each window, as in ``SequenceLosses``
        self.nll_N = None if self._next is None else nll_M.reshape(self.n_sequences, self.length).sum(1)

    @property
    def nbytes(self) -> int:
        """Of what is kept."""
        pairs = (self._exact if self.exact else self._buckets).values()
        return sum(tensor.nbytes for pair in pairs for tensor in pair)

    @torch.inference_mode()
    def losses(self, final_NTD: Tensor, *, on_piece: Callable[[int, int], None] | None = None) -> SequenceLosses:
        """Compare a candidate, from the hidden states that left its last layer.

        Args:
            on_piece: called with (positions done, of all); may raise Interrupted to stop.
        """
        kl_M, nll_M = np.zeros(self.n_sequences * self.length), np.zeros(self.n_sequences * self.length)
        for piece, logits_MV in self._pieces(final_NTD, on_piece):
            if self._next is not None:
                nll_M[piece] = _nll(logits_MV, self._next[piece])
            kl_M[piece] = self._kl(piece.start, logits_MV).double().cpu().numpy()
        shape = (self.n_sequences, self.length)
        return SequenceLosses(
            kl_N=kl_M.reshape(shape).mean(1),
            nll_N=None if self._next is None else nll_M.reshape(shape).sum(1),
        )

    def _kl(self, begin: int, logits_MV: Tensor) -> Tensor:
        if self.exact:
            logits_ref_MV, p_ref_MV = self._exact[begin]
            return token_kl(logits_ref_MV, logits_MV, p_ref_MV)
        log_p_Mb, ids_Mk = (kept.to(logits_MV.device) for kept in self._buckets[begin])
        return bucket_kl(log_p_Mb, bucket_log_probs(logits_MV, ids_Mk.long()))

    @torch.inference_mode()
    def _pieces(self, final_NTD: Tensor, on_piece: Callable[[int, int], None] | None) -> Iterator[tuple[slice, Tensor]]:
        """Logits (M, V) of neighbouring positions; the same pieces for every model, so that equal ones are equal."""
        hidden_PD = final_NTD.reshape(-1, final_NTD.shape[-1])
        step = max(1, _LOGITS_AT_ONCE // self._model.vocab_size)
        for begin in range(0, hidden_PD.shape[0], step):
            if on_piece is not None:
                on_piece(begin, hidden_PD.shape[0])
            piece = slice(begin, min(begin + step, hidden_PD.shape[0]))
            yield piece, self._model.logits(hidden_PD[piece].to(self._model.device))


def bucket_log_probs(logits_MV: Tensor, ids_Mk: Tensor) -> Tensor:
    """(M, k + 1) log-probabilities of some tokens and, last, of all the others together (−inf: there are none)."""
    log_p_MV = torch.log_softmax(logits_MV, dim=-1)
    top_Mk = log_p_MV.gather(1, ids_Mk)
    tail_M1 = log_p_MV.scatter(1, ids_Mk, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([top_Mk, tail_M1], dim=-1)


def bucket_kl(log_p_Mb: Tensor, log_q_Mb: Tensor) -> Tensor:
    """(M,) Σ p·(expm1(−d) + d), d = log p − log q, in float64: KL, since p and q both sum to 1.

    No term is negative, and equal distributions give exactly 0: nothing cancels between buckets.
    """
    log_p, log_q = log_p_Mb.double(), log_q_Mb.double()
    p, q = log_p.exp(), log_q.exp()
    empty = p == 0  # such a bucket costs what the candidate puts there
    d = torch.where(empty, 0.0, log_p - log_q)
    near = p * (torch.expm1(-d.clamp(min=-_FAR)) + d)
    term = torch.where(d < -_FAR, q - p + p * d, near)
    return torch.where(empty, q, term).clamp(min=0.0).sum(-1)


def _next_tokens(ids_NT: NDArray[np.int32]) -> Tensor:
    """(N·T,) the token after each position; −1 after a window's last."""
    ids = torch.from_numpy(ids_NT.astype(np.int64))
    return torch.cat([ids[:, 1:], torch.full((ids.shape[0], 1), -1)], dim=1).reshape(-1)


def _nll(logits_MV: Tensor, next_M: Tensor) -> NDArray[np.float64]:
    """Of the token after each position; 0 where there is none."""
    losses = torch.nn.functional.cross_entropy(
        logits_MV, next_M.to(logits_MV.device), reduction="none", ignore_index=-1
    )
    return losses.double().cpu().numpy()
