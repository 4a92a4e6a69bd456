"""Approximations: what matrices become at anchors, decomposed once and kept packed for the methods that follow.

Shapes: w_OI.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from compress_core.calibrate.source import HessianSource
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.compressed import CompressedMatrix
from compress_core.config import CompressionConfig
from compress_core.decompose import compress_matrix
from compress_core.error_metrics import calibration_weighted_error
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.shared_inputs import SharedInputs


@dataclass(frozen=True, slots=True)
class Approximation:
    """Ŵ of a matrix at a config."""

    #: float32, on the device
    w_hat_OI: Tensor
    calibration_weighted_error: float


@dataclass
class Approximations:
    """Decomposes a (matrix, config) when it is first asked for.

    H may be computed while the model streams by, so what is not kept must be asked for in the order of the layers.

    Raises:
        NonFiniteValues: NaN in a weight (named), or in H.
        CalibrationError: no H for a matrix.
    """

    checkpoint: Checkpoint
    calibration: HessianSource | None
    device: torch.device
    #: whether several methods will ask for the same ones
    keep: bool = False
    #: files of packed matrices, which another attempt finds again; None = in memory
    folder: Path | None = None

    def __post_init__(self) -> None:
        self._inputs = SharedInputs(self.calibration, self.device)
        self._kept: dict[tuple[MatrixKey, str], tuple[CompressedMatrix, float]] = {}

    def of(self, spec: MatrixSpec, config: CompressionConfig) -> Approximation:
        """The matrix at a config whose rank it can have; as a compress job makes it."""
        compressed, error = self._load(spec, config) or self._make(spec, config)
        return Approximation(compressed.dequantize(device=self.device), error)

    def has(self, spec: MatrixSpec, config: CompressionConfig) -> bool:
        """Whether no H is needed for it."""
        if self.folder is None:
            return (spec.key, config.config_hash) in self._kept
        return _file(self.folder, spec, config).is_file()

    def prepare(
        self, wanted: Iterable[tuple[MatrixSpec, CompressionConfig]], tell: Callable[[str], None] = lambda message: None
    ) -> None:
        """Make and keep what is asked for later, in the order of the layers, as H may need; nothing without ``keep``.

        Args:
            tell: told what is being done; may raise Interrupted.
        """
        for spec, config in wanted:
            if self.keep and not self.has(spec, config):
                tell(f"decomposing {spec.key} at {config}")
                self._make(spec, config)

    def _make(self, spec: MatrixSpec, config: CompressionConfig) -> tuple[CompressedMatrix, float]:
        w_OI = read_matrix(self.checkpoint, spec).float().to(self.device)
        shared = self._inputs.of(spec)
        compressed = compress_matrix(w_OI, shared.h_II, config, device=self.device, shared=shared)
        error = calibration_weighted_error(w_OI, compressed.dequantize(device=self.device), shared.hessian)
        if self.keep:
            self._save(spec, config, compressed, error)
        return compressed, error

    # --- what is kept

    def _save(self, spec: MatrixSpec, config: CompressionConfig, compressed: CompressedMatrix, error: float) -> None:
        if self.folder is None:
            self._kept[spec.key, config.config_hash] = compressed, error
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = _file(self.folder, spec, config)
        temporary = file.with_suffix(".part")
        meta = {"meta": json.dumps(compressed.meta()), "error": error.hex()}
        save_file({name: tensor.contiguous() for name, tensor in compressed.tensors().items()}, temporary, meta)
        temporary.replace(file)

    def _load(self, spec: MatrixSpec, config: CompressionConfig) -> tuple[CompressedMatrix, float] | None:
        if self.folder is None:
            return self._kept.get((spec.key, config.config_hash))
        file = _file(self.folder, spec, config)
        if not file.is_file():
            return None
        with safe_open(file, framework="pt") as stored:
            meta = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        return CompressedMatrix.from_tensors(tensors, json.loads(meta["meta"])), float.fromhex(meta["error"])


def _file(folder: Path, spec: MatrixSpec, config: CompressionConfig) -> Path:
    return folder / f"{spec.key}-{config.config_hash}.safetensors"
