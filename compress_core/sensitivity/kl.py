"""Isolated KL: what the model's output loses when one matrix alone is compressed at an anchor config."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from compress_core.calibrate.source import HessianSource
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.config import CompressionConfig
from compress_core.decompose import compress_matrix
from compress_core.device import find_device, find_dtype
from compress_core.error_metrics import calibration_weighted_error
from compress_core.errors import NonFiniteValues
from compress_core.evaluate.kl import token_kl
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.progress import Progress, silent
from compress_core.sensitivity.replacements import Replacements
from compress_core.shared_inputs import SharedInputs
from compress_core.stream.hidden import DEFAULT_BATCH_TOKENS
from compress_core.text.tokens import TokenWindows

#: logits (float32) that are compared at once
_LOGITS_AT_ONCE = 1 << 22
#: reference logits and probabilities are kept if they take no more than this; else computed again each time
_REFERENCE_LIMIT = 1 << 31
#: hidden states of replacements that wait to go through the later layers together, where layers are not held
_WAITING_LIMIT = 1 << 32


@dataclass(frozen=True, slots=True)
class SensitivityResult:
    """KL(p_ref ‖ p with only this matrix replaced) and the error that caused it."""

    key: MatrixKey
    #: the anchor, with its rank cut to what the matrix can have
    config: CompressionConfig
    #: mean KL over each sequence's positions, nats a token
    kl_per_sequence: tuple[float, ...]
    #: the anchor's error in this matrix
    calibration_weighted_error: float

    @property
    def n_sequences(self) -> int:
        return len(self.kl_per_sequence)

    @property
    def kl_mean(self) -> float:
        """Nats a token."""
        return sum(self.kl_per_sequence) / self.n_sequences

    @property
    def kl_standard_error(self) -> float:
        """Standard error of :attr:`kl_mean` over sequences; infinite with one sequence."""
        n, mean = self.n_sequences, self.kl_mean
        if n < 2:
            return math.inf
        return math.sqrt(sum((kl - mean) ** 2 for kl in self.kl_per_sequence) / (n - 1) / n)

    @property
    def nats_per_error(self) -> float:
        """a = KL / error: the sensitivity. 0 where the anchor changed nothing."""
        return self.kl_mean / self.calibration_weighted_error if self.calibration_weighted_error > 0 else 0.0


def kl_sensitivity(
    checkpoint: Checkpoint,
    calibration: HessianSource | None,
    tokens: TokenWindows,
    anchors: Sequence[CompressionConfig],
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    hold: bool | None = None,
    done: Collection[tuple[MatrixKey, str]] = (),
    on_result: Callable[[SensitivityResult], None] | None = None,
    progress: Progress = silent,
) -> list[SensitivityResult]:
    """Measure every matrix at every anchor; only the blocks from the changed one on are run again.

    Args:
        tokens: windows of the *measure* split.
        anchors: configs; ranks are cut to min(out, in) of each matrix.
        hold: whether all layers stay in memory; None = where they take no more than half of what is free. Else each is
            read when it is needed, and the replacements of one layer go through the later ones together.
        done: (matrix, config_hash of the cut config) pairs that are known and left out.
        on_result: called with each result as soon as it is known; may raise Interrupted to stop.

    Raises:
        NonFiniteValues: NaN in a weight (named), in activations, or in a KL.
        CalibrationError, DeviceNotFound, Interrupted: see there.
    """
    torch_device = find_device(device)
    work: list[tuple[MatrixSpec, CompressionConfig]] = []
    for spec in checkpoint.matrices():
        cut = dict.fromkeys(anchor.clamped(spec.out_features, spec.in_features) for anchor in anchors)
        work += [(spec, config) for config in cut if (spec.key, config.config_hash) not in done]
    if not work:
        return []
    progress(0, len(work), "running the original model")
    model = Replacements(checkpoint, tokens, torch_device, find_dtype(dtype), batch_tokens, hold=hold)
    reference = _Reference(model)
    inputs = SharedInputs(calibration, torch_device)
    at_once = 1 if model.holds else max(1, _WAITING_LIMIT // model.hidden_bytes)
    results: list[SensitivityResult] = []
    for group in _groups(work, at_once):
        layer_idx = group[0][0].key.layer_idx
        model.states(layer_idx)
        changed: list[Tensor] = []
        errors: list[float] = []
        with model.layer(layer_idx) as layer:
            for spec, config in group:
                progress(len(results), len(work), f"sensitivity of {spec.key} at {config}")
                weight = read_matrix(checkpoint, spec).float().to(torch_device)
                shared = inputs.of(spec)
                compressed = compress_matrix(weight, shared.h_II, config, device=torch_device, shared=shared)
                approximation = compressed.dequantize().to(torch_device)
                errors.append(calibration_weighted_error(weight, approximation, shared.hessian))
                with model.replaced(layer, spec, approximation):
                    changed.append(model.after(layer_idx))
        model.through(layer_idx, changed, partial(_tell, progress, len(results), len(work), layer_idx))
        for (spec, config), error in zip(group, errors, strict=True):
            result = SensitivityResult(spec.key, config, sequence_kl(model, reference, changed.pop(0)), error)
            if not all(math.isfinite(kl) for kl in result.kl_per_sequence):
                raise NonFiniteValues(f"the KL of matrix {spec.key} at {config} is NaN or infinite: use dtype float32")
            results.append(result)
            if on_result is not None:
                on_result(result)
    progress(len(work), len(work), f"measured {len(work)} sensitivities")
    return results


def _tell(progress: Progress, done: int, total: int, replaced: int, layer_idx: int) -> None:
    """Where the replacements of a layer have come to: of a model that is read from the disk each layer takes long."""
    progress(done, total, f"replacements of layer {replaced} run through layer {layer_idx}")


def _groups(
    work: Sequence[tuple[MatrixSpec, CompressionConfig]], at_once: int
) -> Iterator[Sequence[tuple[MatrixSpec, CompressionConfig]]]:
    """Runs of at most so many that are of one layer."""
    for _, of_layer in groupby(work, key=lambda item: item[0].key.layer_idx):
        items = list(of_layer)
        for first in range(0, len(items), at_once):
            yield items[first : first + at_once]


def replacement_kl(
    model: Replacements, reference: _Reference, spec: MatrixSpec, weight_OI: Tensor
) -> tuple[float, ...]:
    """Mean KL of each sequence, nats a token, with one weight replaced by ``weight_OI``."""
    layer_idx = spec.key.layer_idx
    model.states(layer_idx)
    with model.layer(layer_idx) as layer, model.replaced(layer, spec, weight_OI):
        changed = model.after(layer_idx)
    model.through(layer_idx, [changed])
    return sequence_kl(model, reference, changed)


@torch.inference_mode()
def sequence_kl(model: Replacements, reference: _Reference, final_NTD: Tensor) -> tuple[float, ...]:
    """Mean KL of each sequence, nats a token, from the hidden states that left the last layer."""
    per_sequence: list[float] = []
    for part in model.parts():
        hidden = final_NTD[part].to(model.model.device)
        flat = hidden.reshape(-1, hidden.shape[-1])
        chunks = []
        for piece, logits_ref, p_ref in reference.pieces(part.start * model.length, flat.shape[0]):
            chunks.append(token_kl(logits_ref, model.model.logits(flat[piece]), p_ref))
        kl = torch.cat(chunks).double().reshape(hidden.shape[0], -1).mean(1)
        per_sequence += kl.tolist()
    return tuple(per_sequence)


class _Reference:
    """Logits and probabilities of the original model at every position, kept where they fit."""

    def __init__(self, model: Replacements) -> None:
        self._model = model.model
        self._hidden_ND = model.final.reshape(-1, model.final.shape[-1])
        self._step = max(1, _LOGITS_AT_ONCE // self._model.vocab_size)
        n_positions = self._hidden_ND.shape[0]
        self._keep = 2 * 4 * n_positions * self._model.vocab_size <= _REFERENCE_LIMIT
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def pieces(self, begin: int, count: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Pieces of ``count`` positions from ``begin`` on: slice inside them, logits (M, V), softmax of these."""
        for offset in range(0, count, self._step):
            size = min(self._step, count - offset)
            yield slice(offset, offset + size), *self._at(begin + offset, size)

    def _at(self, begin: int, size: int) -> tuple[Tensor, Tensor]:
        if begin in self._kept:
            return self._kept[begin]
        logits = self._model.logits(self._hidden_ND[begin : begin + size].to(self._model.device))
        pair = (logits, torch.softmax(logits, dim=-1))
        if self._keep:
            self._kept[begin] = pair
        return pair
