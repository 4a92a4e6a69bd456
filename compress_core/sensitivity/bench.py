"""Bench: the original model on the measuring text, which the methods of one job share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.device import find_device, find_dtype
from compress_core.evaluate.reference import Reference
from compress_core.progress import Progress, silent
from compress_core.sensitivity.replacements import Replacements
from compress_core.stream.hidden import DEFAULT_BATCH_TOKENS
from compress_core.text.tokens import TokenWindows


@dataclass
class Bench:
    """What is measured on: a model, windows of the *measure* split, a device.

    The original model runs when it is first needed.

    Raises:
        CalibrationError: token ids outside the vocabulary.
        NonFiniteValues: NaN in a weight (named) or in activations.
        DeviceNotFound: no such device.
        Interrupted: by ``progress``.
    """

    checkpoint: Checkpoint
    tokens: TokenWindows
    device_name: str | torch.device = "cpu"
    dtype_name: str = "float32"
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    #: whether all layers stay in memory; None = where they take no more than half of what is free. Else each is read
    #: when it is needed, and the replacements of one layer go through the later ones together
    hold: bool | None = None
    #: told (0, 1, what is being done) while the original model runs
    progress: Progress = silent

    @property
    def device(self) -> torch.device:
        return find_device(self.device_name)

    @property
    def dtype(self) -> torch.dtype:
        return find_dtype(self.dtype_name)

    @cached_property
    def model(self) -> Replacements:
        """The original model, which answers for one replaced matrix at a time."""
        self.progress(0, 1, "running the original model")
        return Replacements(self.checkpoint, self.tokens, self.device, self.dtype, self.batch_tokens, hold=self.hold)

    @cached_property
    def reference(self) -> Reference:
        """What the original model says."""

        def tell(done: int, total: int) -> None:
            self.progress(0, 1, f"the original model's logits: {done} of {total} tokens")

        return Reference(self.model.model, self.model.final, on_piece=tell)
