"""Fisher scores: the nats of KL that an anchor is predicted to cost to second order, from gradients of the original.

With g_t the gradient of Σ log p(y~) by what a matrix puts out at token t, x_t what enters it and D = Ŵ − W, the KL of
a small change is ½·mean_t (g_tᵀ D x_t)², if tokens are taken apart. Two of its diagonal forms, for comparison with
measured KL:

    fisher_output    ½·mean_t Σ_o g_{t,o}²·(D x_t)_o²     (ModelOpt's AutoQuantize score)
    fisher_diagonal  ½·Σ_w F_w·D_w²                       (LQ-LoRA's weights, arXiv 2311.12023)

F_w = E[(∂ log p(y~)/∂w)²] a token: labels of different tokens are drawn independently given the text, so the squared
gradient of a whole sequence is the sum of its tokens' on average.

Shapes: O = out_features, I = in_features, t tokens of a sequence. d_OI, x_tI, g_tO.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compress_core.checkpoint.read import DenseWeights, read_matrix
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, NonFiniteValues
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.precision import exact_float32
from compress_core.progress import Progress, silent
from compress_core.sensitivity.approximations import Approximations
from compress_core.sensitivity.bench import Bench
from compress_core.sensitivity.kl import OnResult, anchor_work
from compress_core.sensitivity.measure import Change
from compress_core.sensitivity.result import SensitivityResult
from compress_core.stream.backward import BackwardPass, Passage, Passages
from compress_core.stream.model import StreamedModel
from compress_core.stream.states import DEFAULT_RAM_BYTES

OUTPUT, DIAGONAL = "fisher_output", "fisher_diagonal"
METHODS = (DIAGONAL, OUTPUT)


@dataclass(frozen=True)
class _Task:
    """A matrix at an anchor, and the methods that are wanted of it."""

    change: Change[CompressionConfig]
    methods: tuple[str, ...]
    #: Ŵ − W
    d_OI: Tensor
    error: float
    #: nats a token of each sequence so far, by method
    predicted: dict[str, list[float]]


def fisher_sensitivity(
    bench: Bench,
    approximations: Approximations,
    anchors: Sequence[CompressionConfig],
    methods: Sequence[str] = METHODS,
    *,
    seed: int = 0,
    done: Collection[tuple[str, MatrixKey, str]] = (),
    ram_bytes: int = DEFAULT_RAM_BYTES,
    folder: Path | None = None,
    on_result: OnResult | None = None,
    progress: Progress = silent,
) -> list[SensitivityResult]:
    """Predict the KL of every matrix at every anchor, in one pass forward and one back.

    One sequence goes through one layer at a time; of a layer, its weights and D of every anchor are in memory.

    Args:
        approximations: must keep what it makes where H is computed while it is used: they are asked for once in the
            order of the layers, and then from the last layer back.
        methods: of ``METHODS``.
        seed: of the labels y~.
        done: (method, matrix, config_hash of the cut config) that are known and left out.
        ram_bytes, folder: see ``BackwardPass``.
        progress: told (number of results, of all, what is being done); may raise Interrupted.

    Raises:
        ConfigError: an unknown method.
        NonFiniteValues: NaN in a weight (named), in activations, or in gradients.
        CalibrationError, DeviceNotFound, OutOfMemory, Interrupted: see there.
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise ConfigError(f"method {unknown[0]!r} is unknown: choose of {', '.join(METHODS)}")
    work = {
        change: wanted
        for change in anchor_work(bench.checkpoint, anchors)
        if (wanted := tuple(m for m in methods if (m, change.spec.key, change.anchor.config_hash) not in done))
    }
    if not work:
        return []
    total = sum(map(len, work.values()))
    results: list[SensitivityResult] = []

    def tell(message: str) -> None:
        progress(len(results), total, message)

    approximations.prepare(((change.spec, change.anchor) for change in work), tell)
    model = StreamedModel(DenseWeights(bench.checkpoint), device=bench.device, dtype=bench.dtype)
    back = BackwardPass(
        bench.checkpoint,
        model,
        bench.tokens,
        seed=seed,
        batch_tokens=bench.batch_tokens,
        ram_bytes=ram_bytes,
        folder=folder,
        tell=tell,
    )
    tasks: list[_Task] = []

    def on_sequence(layer_idx: int, number: int, passages: Passages) -> None:
        if number == 0:
            of_layer = [item for item in work.items() if item[0].spec.key.layer_idx == layer_idx]
            tasks[:] = [_task(bench, approximations, change, wanted) for change, wanted in of_layer]
        _score(tasks, passages, bench.tokens.length)

    first = min(change.spec.key.layer_idx for change in work)
    for _ in back.walk(on_sequence, last=first):
        for task in tasks:
            for result in _results(task):
                results.append(result)
                if on_result is not None:
                    on_result(result)
        tasks.clear()
    progress(total, total, f"predicted {total} sensitivities from gradients")
    return results


def _task(
    bench: Bench, approximations: Approximations, change: Change[CompressionConfig], methods: tuple[str, ...]
) -> _Task:
    found = approximations.of(change.spec, change.anchor)
    w_OI = read_matrix(bench.checkpoint, change.spec).to(found.w_hat_OI.device, torch.float32)
    d_OI = found.w_hat_OI - w_OI
    return _Task(change, methods, d_OI, found.calibration_weighted_error, {method: [] for method in methods})


@torch.no_grad()
@exact_float32()
def _score(tasks: Sequence[_Task], passages: Passages, length: int) -> None:
    """Add one sequence's nats a token to each task."""
    spec: MatrixSpec | None = None
    squared_OI: Tensor | None = None
    for task in tasks:
        if spec != task.change.spec:
            spec, squared_OI = task.change.spec, None
        of_matrix = passages[task.change.spec]
        for method, nats in task.predicted.items():
            if not of_matrix:  # an expert that the sequence does not reach
                nats.append(0.0)
            elif method == OUTPUT:
                nats.append(sum(_output_score(passage, task.d_OI) for passage in of_matrix) / (2 * length))
            else:
                if squared_OI is None:
                    squared_OI = _weight_gradient(of_matrix).square_()
                nats.append(float((squared_OI * task.d_OI.square()).sum(dtype=torch.float64)) / (2 * length))


def _output_score(passage: Passage, d_OI: Tensor) -> float:
    """Σ_t Σ_o g²·(D x)²."""
    change_tO = passage.x_tI.float() @ d_OI.T
    return float((change_tO * passage.g_tO.float()).square().sum(dtype=torch.float64))


def _weight_gradient(passages: Sequence[Passage]) -> Tensor:
    """Σ_t g xᵀ (O, I)."""
    total_OI = passages[0].g_tO.float().T @ passages[0].x_tI.float()
    for passage in passages[1:]:
        total_OI += passage.g_tO.float().T @ passage.x_tI.float()
    return total_OI


def _results(task: _Task) -> list[SensitivityResult]:
    key, anchor = task.change.spec.key, task.change.anchor
    found = []
    for method, nats in task.predicted.items():
        result = SensitivityResult(key, anchor, tuple(nats), task.error, method)
        if not math.isfinite(result.kl_mean):
            raise NonFiniteValues(f"the {method} score of matrix {key} at {anchor} is NaN or infinite")
        found.append(result)
    return found
