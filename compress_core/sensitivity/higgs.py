"""HIGGS: nats of KL per unit of t² from Gaussian noise of relative Frobenius norm t in one matrix.

The linearity theorem (HIGGS, arXiv 2411.17525) says that for small unbiased errors the loss grows by Σ_i α_i t_i²,
t_i² = ‖Ŵ_i − W_i‖² / ‖W_i‖²: α_i needs no calibration and no compression. It takes errors to be isotropic, which those
that are minimised under H are not; so α goes with normalized_mse, and is here for comparison.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress_core.checkpoint.read import read_matrix
from compress_core.errors import ConfigError
from compress_core.matrix import MatrixKey
from compress_core.progress import Progress, silent
from compress_core.sensitivity.bench import Bench
from compress_core.sensitivity.kl import OnResult
from compress_core.sensitivity.measure import Change, measure_changes
from compress_core.sensitivity.result import SensitivityResult

METHOD = "higgs"


@dataclass(frozen=True, slots=True)
class Noise:
    """An anchor: Gaussian noise with ‖noise‖ = t·‖W‖ exactly.

    Raises:
        ConfigError: t is not between 0 and 1.
    """

    #: t
    norm: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.norm < 1:
            raise ConfigError(f"noise must have a relative norm between 0 and 1, not {self.norm}")

    @property
    def config_hash(self) -> str:
        return f"noise-{self.norm}" + (f"-seed-{self.seed}" if self.seed else "")

    def to_dict(self) -> dict[str, Any]:
        return {"noise": self.norm} | ({"seed": self.seed} if self.seed else {})

    def added(self, key: MatrixKey, w_OI: Tensor) -> Tensor:
        """W + noise, float32; the noise comes from a CPU generator: the same on every device and in every order."""
        digest = hashlib.sha256(f"{self.seed} {key} {self.norm!r}".encode()).digest()
        generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:7], "big"))
        w_OI = w_OI.to(torch.float32)
        noise_OI = torch.randn(w_OI.shape, generator=generator).to(w_OI.device)
        scale = self.norm * w_OI.double().norm() / noise_OI.double().norm()
        return w_OI + noise_OI * scale.to(torch.float32)

    def __str__(self) -> str:
        return f"noise of {self.norm:g}"


def noise_sensitivity(
    bench: Bench,
    noises: Sequence[Noise],
    *,
    done: Collection[tuple[MatrixKey, str]] = (),
    on_result: OnResult | None = None,
    progress: Progress = silent,
) -> list[SensitivityResult]:
    """KL of every matrix with noise of each level, per unit of t².

    Args:
        noises: two levels or more, so that a level at which KL is no longer linear in t² shows.
        done: (matrix, config_hash of the noise) pairs that are known and left out.
        progress: told (number of results, of all, what is being done); may raise Interrupted.

    Raises:
        NonFiniteValues, CalibrationError, DeviceNotFound, Interrupted: as ``kl_sensitivity``.
    """
    work = [
        Change(spec, noise)
        for spec in bench.checkpoint.matrices()
        for noise in noises
        if (spec.key, noise.config_hash) not in done
    ]
    if not work:
        return []
    progress(0, len(work), "running the original model")

    def weight_of(change: Change[Noise]) -> tuple[Tensor, float]:
        w_OI = read_matrix(bench.checkpoint, change.spec)
        return change.anchor.added(change.spec.key, w_OI), change.anchor.norm**2

    results: list[SensitivityResult] = []
    for found in measure_changes(bench.model, bench.reference, work, weight_of, progress):
        key, noise = found.change.spec.key, found.change.anchor
        results.append(SensitivityResult(key, noise, found.kl_per_sequence, found.error, METHOD))
        if on_result is not None:
            on_result(results[-1])
    progress(len(work), len(work), f"measured {len(work)} sensitivities to noise")
    return results
