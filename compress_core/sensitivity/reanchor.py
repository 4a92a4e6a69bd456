"""Re-anchoring: what each matrix's compression costs around a whole allocation x, not around the original model.

KL(x) − KL(x with matrix i restored), over ε_i(x_i): where matrices interact, a sensitivity measured alone misprices
them, and this one repairs it with one evaluation a matrix (Radio, arXiv 2505.03031: quantising changes sensitivities).
A difference of two KLs may be negative: restoring a matrix can undo an error that others compensate.

Shapes: w_OI.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import DenseWeights, read_matrix
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, NonFiniteValues
from compress_core.evaluate.reference import Reference
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.progress import Progress, silent
from compress_core.sensitivity.approximations import Approximations
from compress_core.sensitivity.bench import Bench
from compress_core.sensitivity.kl import OnResult
from compress_core.sensitivity.measure import Change, measure_changes
from compress_core.sensitivity.replacements import Replacements
from compress_core.sensitivity.result import SensitivityResult
from compress_core.stream.hidden import run_all
from compress_core.stream.model import StreamedModel

METHOD = "reanchored"


@dataclass(frozen=True, slots=True)
class Incumbent:
    """An anchor: a whole allocation, with this one matrix restored."""

    allocation_id: str
    #: of its configs: equal allocations are one anchor
    content_hash: str

    @property
    def config_hash(self) -> str:
        return self.content_hash

    def to_dict(self) -> dict[str, Any]:
        return {"allocation_id": self.allocation_id}

    def __str__(self) -> str:
        return f"allocation {self.allocation_id}"


class IncumbentWeights(DenseWeights):
    """The weights that a compress job makes of an allocation, dequantised when they are asked for."""

    def __init__(
        self, checkpoint: Checkpoint, approximations: Approximations, items: Mapping[MatrixKey, CompressionConfig]
    ) -> None:
        super().__init__(checkpoint)
        self._approximations = approximations
        self._items = items
        self._of_tensor: dict[str, list[MatrixSpec]] = {}
        for spec in checkpoint.matrices():
            self._of_tensor.setdefault(spec.tensor_name, []).append(spec)

    def tensor(self, name: str) -> Tensor:
        """A weight; of a fused one, the rows of each matrix are replaced."""
        stored = super().tensor(name)
        specs = self._of_tensor.get(name)
        if specs is None:
            return stored
        weight = stored.float()
        for spec in specs:
            rows = slice(None) if spec.rows is None else slice(*spec.rows)
            weight[rows] = self._approximations.of(spec, self._items[spec.key]).w_hat_OI.cpu()
        return weight


def reanchored_sensitivity(
    bench: Bench,
    approximations: Approximations,
    incumbent: Incumbent,
    items: Mapping[MatrixKey, CompressionConfig],
    *,
    done: Collection[MatrixKey] = (),
    on_result: OnResult | None = None,
    progress: Progress = silent,
) -> list[SensitivityResult]:
    """Measure every matrix around the incumbent.

    Args:
        approximations: must keep what it makes: the incumbent's layers are read more than once.
        items: the incumbent's config for every matrix, with ranks that these can have.
        done: matrices that are known and left out.
        progress: told (number of results, of all, what is being done); may raise Interrupted.

    Raises:
        ConfigError: a matrix has no config, or ``approximations`` does not keep.
        NonFiniteValues: NaN in a weight (named), in the incumbent's activations, or in a KL.
        CalibrationError, DeviceNotFound, Interrupted: see there.
    """
    checkpoint = bench.checkpoint
    if missing := [str(spec.key) for spec in checkpoint.matrices() if spec.key not in items]:
        raise ConfigError(f"the incumbent has no config for matrix {missing[0]} ({len(missing)} have none)")
    if not approximations.keep:
        raise ConfigError("re-anchoring needs approximations that are kept")
    work = [Change(spec, incumbent) for spec in checkpoint.matrices() if spec.key not in done]
    if not work:
        return []
    results: list[SensitivityResult] = []

    def tell(message: str) -> None:
        progress(len(results), len(work), message)

    approximations.prepare(((spec, items[spec.key]) for spec in checkpoint.matrices()), tell)
    tell("running the original model")
    original = StreamedModel(DenseWeights(checkpoint), device=bench.device, dtype=bench.dtype)
    final = run_all(
        original, bench.tokens.ids, lambda done, total, message: tell(message), batch_tokens=bench.batch_tokens
    )
    reference = Reference(original, final, on_piece=lambda done, total: tell("the original model's logits"))
    del final
    tell(f"running {incumbent}")
    model = Replacements(
        checkpoint,
        bench.tokens,
        bench.device,
        bench.dtype,
        bench.batch_tokens,
        hold=bench.hold,
        source=IncumbentWeights(checkpoint, approximations, items),
    )
    whole_N = reference.losses(model.final, on_piece=lambda done, total: tell(f"the logits of {incumbent}")).kl_N
    if not np.isfinite(whole_N).all():
        raise NonFiniteValues(f"the KL of {incumbent} is NaN or infinite: use dtype float32")

    def weight_of(change: Change[Incumbent]) -> tuple[Tensor, float]:
        found = approximations.of(change.spec, items[change.spec.key])
        return read_matrix(checkpoint, change.spec), found.calibration_weighted_error

    for found in measure_changes(model, reference, work, weight_of, progress):
        saved_N = whole_N - np.array(found.kl_per_sequence)
        result = SensitivityResult(found.change.spec.key, incumbent, tuple(saved_N.tolist()), found.error, METHOD)
        results.append(result)
        if on_result is not None:
            on_result(result)
    progress(len(work), len(work), f"measured {len(work)} sensitivities around {incumbent}")
    return results
