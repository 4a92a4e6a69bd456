"""Scores: KL and negative log-likelihood of every path from the states that left the last layer.

Shapes: P paths, N windows, B windows of a batch, T tokens, M positions of a piece, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from compress_core.evaluate.kl import token_kl
from compress_core.stream.hidden import batches
from compress_core.stream.model import StreamedModel
from compress_core.stream.states import HiddenStates
from compress_core.text.tokens import TokenWindows

#: float32 logits of one path that are in memory at once: what a CPU's caches like, and what keeps a card busy
_LOGITS_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 25}


@dataclass(frozen=True, eq=False)
class Scores:
    """Of P paths, in float64."""

    #: mean KL(path 0 ‖ path) over each window's positions, nats a token; exactly 0 for equal models
    kl_PN: NDArray[np.float64]
    #: nats, summed over the T − 1 predicted tokens of each window
    nll_PN: NDArray[np.float64]


@torch.inference_mode()
def score_paths(
    model: StreamedModel,
    states: HiddenStates,
    tokens: TokenWindows,
    places: Sequence[int],
    on_scored: Callable[[int], None],
) -> Scores:
    """Scores of the paths in these places against the first of them.

    The reference's logits are made once for each piece of positions and stand beside one other path's: nothing of the
    size of all logits is ever stored.

    Args:
        places: of the paths, each different.
        on_scored: called with the number of positions of each piece that is done; may raise Interrupted.
    """
    n_windows, length = tokens.ids.shape
    kl = np.zeros((len(places), n_windows))
    nll = np.zeros_like(kl)
    targets_NT = torch.from_numpy(np.roll(tokens.ids, -1, axis=1).astype(np.int64))
    at_once = max(1, _LOGITS_AT_ONCE[model.device.type] // model.vocab_size)
    for part in batches(n_windows, length, at_once):
        windows = np.arange(part.start, part.stop).repeat(length)
        # what follows a window's last token is nobody's to predict
        predicted = np.tile(np.arange(length) < length - 1, part.stop - part.start)
        targets = targets_NT[part].reshape(-1).to(model.device)
        for piece in _pieces(targets.shape[0], at_once):
            reference = p_ref = None
            for number, place in enumerate(places):
                rows = slice(place * n_windows + part.start, place * n_windows + part.stop)
                hidden_MD = states.read(rows).reshape(-1, model.hidden_size)[piece]
                logits_MV = model.logits(hidden_MD.to(model.device))
                losses = torch.nn.functional.cross_entropy(logits_MV, targets[piece], reduction="none").double()
                np.add.at(nll[number], windows[piece], losses.cpu().numpy() * predicted[piece])
                if reference is None:
                    reference, p_ref = logits_MV, torch.softmax(logits_MV, dim=-1)
                else:
                    divergence = token_kl(reference, logits_MV, p_ref).double()
                    np.add.at(kl[number], windows[piece], divergence.cpu().numpy())
            on_scored(piece.stop - piece.start)
    return Scores(kl / length, nll)


def _pieces(count: int, at_once: int) -> Iterator[slice]:
    for begin in range(0, count, at_once):
        yield slice(begin, min(begin + at_once, count))
