"""KL of the model's output with one matrix changed at a time; only the blocks from the changed one on are run again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Generic, TypeVar

from torch import Tensor

from compress_core.errors import NonFiniteValues
from compress_core.evaluate.reference import Reference
from compress_core.matrix import MatrixSpec
from compress_core.progress import Progress
from compress_core.sensitivity.replacements import Replacements
from compress_core.sensitivity.result import Anchor

#: hidden states of replacements that wait to go through the later layers together, where layers are not held
_WAITING_LIMIT = 1 << 32

A = TypeVar("A", bound=Anchor)


@dataclass(frozen=True)
class Change(Generic[A]):
    """One matrix at one anchor."""

    spec: MatrixSpec
    anchor: A


@dataclass(frozen=True)
class Measured(Generic[A]):
    """What a change did."""

    change: Change[A]
    #: mean over each sequence's positions, nats a token
    kl_per_sequence: tuple[float, ...]
    #: of the changed matrix
    error: float


#: the changed weight (out_features, in_features) and its error
WeightOf = Callable[[Change[A]], tuple[Tensor, float]]


def measure_changes(
    model: Replacements,
    reference: Reference,
    work: Sequence[Change[A]],
    weight_of: WeightOf[A],
    progress: Progress,
) -> Iterator[Measured[A]]:
    """KL(reference ‖ model with this one change) of each, in order, as soon as it is known.

    Args:
        model: at the input of each changed layer in turn; ``work`` should be in the order of the layers.
        progress: told (number of results, of all, what is being done); may raise Interrupted.

    Raises:
        NonFiniteValues: a KL is NaN or infinite; names the matrix and the anchor.
    """
    at_once = 1 if model.holds else max(1, _WAITING_LIMIT // model.hidden_bytes)
    done, total = 0, len(work)

    def tell(message: str) -> None:
        progress(done, total, message)

    for group in _groups(work, at_once):
        layer_idx = group[0].spec.key.layer_idx
        model.states(layer_idx)
        changed: list[Tensor] = []
        errors: list[float] = []
        with model.layer(layer_idx) as layer:
            for change in group:
                tell(f"sensitivity of {change.spec.key} at {change.anchor}")
                weight_OI, error = weight_of(change)
                errors.append(error)
                with model.replaced(layer, change.spec, weight_OI):
                    changed.append(model.after(layer_idx))
        model.through(layer_idx, changed, partial(_through, tell, layer_idx))
        for change, error in zip(group, errors, strict=True):
            key, anchor = change.spec.key, change.anchor
            losses = reference.losses(changed.pop(0), on_piece=partial(_comparing, tell, change))
            kl_per_sequence = tuple(losses.kl_N.tolist())
            if not all(math.isfinite(kl) for kl in kl_per_sequence):
                raise NonFiniteValues(f"the KL of matrix {key} at {anchor} is NaN or infinite: use dtype float32")
            done += 1
            yield Measured(change, kl_per_sequence, error)


def _through(tell: Callable[[str], None], replaced: int, layer_idx: int) -> None:
    """Where the replacements of a layer have come to: of a model that is read from the disk each layer takes long."""
    tell(f"replacements of layer {replaced} run through layer {layer_idx}")


def _comparing(tell: Callable[[str], None], change: Change[A], done: int, total: int) -> None:
    """Of a large vocabulary the logits take long too."""
    tell(f"comparing {change.spec.key} at {change.anchor} with the original: {done} of {total} tokens")


def _groups(work: Sequence[Change[A]], at_once: int) -> Iterator[Sequence[Change[A]]]:
    """Runs of at most so many that are of one layer."""
    for _, of_layer in groupby(work, key=lambda change: change.spec.key.layer_idx):
        items = list(of_layer)
        for first in range(0, len(items), at_once):
            yield items[first : first + at_once]
