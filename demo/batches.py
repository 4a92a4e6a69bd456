"""Training text as token streams, and the windows of each step as a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from compress_core.text.stdlib import Document, iter_documents, long_lines, overlap

_COPIED_ABOVE = 0.1


def training_documents() -> tuple[dict[str, list[Document]], list[str]]:
    """The documents of each pool (prose, source, tests), and the names of those left out.

    Left out is what shares more than a tenth of its long lines with a held-out document (``cProfile``
    repeats much of ``profile``, for one): a hash of names cannot see copies.
    """
    heldout = long_lines(d.text for d in iter_documents("heldout"))
    pool_of = {"docs": "prose", "topic": "prose", "source": "source", "test": "tests"}
    pools: dict[str, list[Document]] = {pool: [] for pool in pool_of.values()}
    copied = []
    for document in iter_documents("train", kinds=("docs", "topic", "source", "test")):
        if overlap(document.text, heldout) > _COPIED_ABOVE:
            copied.append(f"{document.kind}:{document.name}")
        else:
            pools[pool_of[document.kind]].append(document)
    return pools, sorted(copied)


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> np.ndarray:
    """The texts' tokens, each text followed by the separator; shape (tokens,), uint16."""
    eos = tokenizer.eos_token_id
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return np.concatenate([np.array([*e.ids, eos], dtype=np.uint16) for e in encoded])


@dataclass
class Batches:
    """Deals windows from the pools in fixed proportion, each pool without replacement.

    ``rows`` says how many of a batch's windows come from each pool. Step ``s`` always gives the same
    batch for the same seed, so a restarted run goes on where it stopped without saved sampler state.
    """

    pools: dict[str, np.ndarray]
    rows: dict[str, int]
    window: int
    seed: int
    _orders: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    def at(self, step: int) -> torch.Tensor:
        """Token ids of one batch, shape (sum of rows, window + 1), int64; targets are shifted by one."""
        windows = [self._window(pool, step * count + j) for pool, count in self.rows.items() for j in range(count)]
        return torch.from_numpy(np.stack(windows).astype(np.int64))

    def _window(self, pool: str, index: int) -> np.ndarray:
        stream = self.pools[pool]
        per_epoch = len(stream) // self.window - 2
        epoch, place = divmod(index, per_epoch)
        order = self._order(pool, epoch, per_epoch)
        start = order[0] + order[1 + place] * self.window
        return stream[start : start + self.window + 1]

    def _order(self, pool: str, epoch: int, per_epoch: int) -> np.ndarray:
        """A random shift of the window grid, then a permutation of its windows; new in every epoch."""
        if (pool, epoch) not in self._orders:
            rng = np.random.default_rng([self.seed, epoch, *pool.encode()])
            shift = rng.integers(self.window, size=1)
            self._orders[pool, epoch] = np.concatenate([shift, rng.permutation(per_epoch)])
        return self._orders[pool, epoch]
