"""What depends on an input and its Hessian alone, prepared once for all the matrices that read it.

q, k and v read one input, gate and up another. Only one input is held at a time, so matrices should come in the order
of a layer's inputs (that of PROJECTIONS is one).

Shapes: I = in_features. h_II.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compress_core.calibrate.inputs import input_name
from compress_core.context import Hessian, InputContext, loaded, prepare_input
from compress_core.matrix import MatrixSpec
from compress_core.rooted_hessian import EXACT_WIDTH

if TYPE_CHECKING:
    from compress_core.calibrate.source import HessianSource


@dataclass
class SharedInput:
    """One input's Hessian, and its context for each seed that somebody asked for."""

    #: on ``device``, or what loads it; None is the identity
    h_II: Hessian
    in_features: int
    device: torch.device
    _contexts: dict[int, InputContext] = field(default_factory=dict)

    @property
    def hessian(self) -> Tensor | None:
        """H itself, loaded where ``h_II`` is what loads it."""
        return loaded(self.h_II)

    def context(self, seed: int) -> InputContext:
        """The prepared input; the first call for a seed pays for it.

        Raises:
            NonFiniteValues, CalibrationError, ValueError: see ``prepare_input``.
        """
        if seed not in self._contexts:
            self._contexts[seed] = prepare_input(self.h_II, self.in_features, seed, self.device)
        return self._contexts[seed]

    def check(self, hessian: Hessian, in_features: int, device: torch.device) -> None:
        """Refuse to stand for another input: results would be wrong without a sign.

        Raises:
            ValueError: another Hessian, width or device.
        """
        if hessian is not self.h_II:
            raise ValueError("the shared input was prepared from another Hessian")
        if (in_features, device) != (self.in_features, self.device):
            raise ValueError(
                f"the shared input is {self.in_features} wide and on {self.device}, not {in_features} and on {device}"
            )


class SharedInputs:
    """The input in hand; asking for another one lets go of it first."""

    def __init__(self, calibration: HessianSource | None, device: torch.device) -> None:
        self._calibration = calibration
        self._device = device
        self._key: object = None
        self._input: SharedInput | None = None

    def of(self, spec: MatrixSpec) -> SharedInput:
        """What the matrix shares with the others that read the same input.

        Raises:
            CalibrationError: the calibration has no H for this matrix.
            NonFiniteValues: its file is damaged.
        """
        # without H all inputs of one width are alike
        key = spec.in_features if self._calibration is None else (spec.key.layer_idx, input_name(spec.key))
        if self._input is None or key != self._key:
            self._input = None  # before the next H is read
            self._input, self._key = SharedInput(self._hessian(spec), spec.in_features, self._device), key
        return self._input

    def _hessian(self, spec: MatrixSpec) -> Hessian:
        """H, or what loads it where it is too large to be held all the time."""
        calibration, device = self._calibration, self._device
        if calibration is None:
            return None

        def load() -> Tensor:
            return calibration.hessian(spec.key).to(device)

        return load() if spec.in_features <= EXACT_WIDTH else load
