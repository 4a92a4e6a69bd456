"""StreamedCalibration: H computed while it is used, one layer at a time, and never stored.

A 72B model's Hessians take 170 GB even as halves. Here the original model runs up to the layer that is asked for, H of
that layer is gathered exactly as ``calibrate_model`` does, and goes to one scratch file before the caller computes: its
pages are the page cache's, and neither weights nor sums are in memory any more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from compress_core.calibrate.forward import ForwardPass, OnBatch, describe
from compress_core.calibrate.half import read_square
from compress_core.calibrate.info import CalibrationInfo
from compress_core.calibrate.inputs import input_name
from compress_core.calibrate.layer_file import layer_inputs, layer_path, open_layer, write_layer
from compress_core.calibrate.recipe import read_recipe, read_tokens
from compress_core.calibrate.second_moment import SecondMoment
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.headers import TensorHeader
from compress_core.errors import CalibrationError
from compress_core.matrix import MatrixKey
from compress_core.progress import Progress, silent
from compress_core.stream.states import DEFAULT_RAM_BYTES
from compress_core.text.tokens import TokenWindows


class StreamedCalibration:
    """A ``HessianSource`` that runs the model forward when a key of a later layer is asked for.

    Callers go through the layers in order. A key of an earlier layer starts the pass again from layer 0, which costs
    what it cost before. What a killed run left in ``scratch`` is gone on with: H of its layer is used as it is, and
    hidden states in mapped files save the layers before it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: TokenWindows,
        info: CalibrationInfo,
        scratch: Path,
        *,
        device: str | torch.device = "cpu",
        wanted: Collection[MatrixKey] | None = None,
        ram_bytes: int = DEFAULT_RAM_BYTES,
        progress: Progress = silent,
    ) -> None:
        """
        Args:
            info: from ``describe``, for this device.
            scratch: a folder of this computation's own.
            wanted: the matrices that will be asked for; H of other inputs is not gathered. None = all.
            ram_bytes: hidden states above this are kept in mapped files under ``scratch``.
            progress: told (batches done, batches, text) of each layer that runs; may raise Interrupted.
        """
        self.info = info
        self._checkpoint = checkpoint
        self._tokens = tokens
        self._scratch = scratch
        self._device = device
        self._wanted = None if wanted is None else frozenset(wanted)
        self._ram_bytes = ram_bytes
        self._progress = progress
        self._forward: ForwardPass | None = None
        #: the layer whose H is at hand, and where each lies
        self._layer_idx: int | None = None
        self._halves: dict[str, tuple[TensorHeader, int]] = {}

    @classmethod
    def open(
        cls,
        path: Path | str,
        checkpoint: Checkpoint,
        scratch: Path,
        *,
        device: str | torch.device = "cpu",
        wanted: Collection[MatrixKey] | None = None,
        most_batch_tokens: int | None = None,
        ram_bytes: int = DEFAULT_RAM_BYTES,
        progress: Progress = silent,
    ) -> StreamedCalibration:
        """From a calibration's folder: the tokens that it kept, and the dtype and batches that it names.

        Args:
            most_batch_tokens: cuts larger batches to this, where memory is scarce. H is then summed in another order:
                its last bits are not those of a stored calibration. None = as it names.

        Raises:
            CalibrationError: not there, of another model, or it has no tokens (an imported one).
            DeviceNotFound: no such device.
        """
        path = Path(path)
        told = read_recipe(path, checkpoint).info
        tokens = read_tokens(path, told)
        info = describe(
            checkpoint,
            tokens,
            source=told.source,
            seed=told.seed,
            device=device,
            dtype=told.dtype,
            batch_tokens=min(told.batch_tokens, most_batch_tokens or told.batch_tokens),
        )
        return cls(
            checkpoint, tokens, info, scratch, device=device, wanted=wanted, ram_bytes=ram_bytes, progress=progress
        )

    def hessian(self, key: MatrixKey) -> Tensor:
        """H of the matrix's input: (in, in) float32, symmetric, on the CPU; the bits that a stored calibration has.

        Raises:
            CalibrationError: there is none for this matrix, or it was not among those wanted.
            NonFiniteValues: NaN in a weight (named) or in activations.
            OutOfMemory: no room on disk for the hidden states.
            Interrupted: by ``progress``; a later call goes on.
        """
        name = input_name(key)
        if not 0 <= key.layer_idx < self._checkpoint.n_layers or name not in self._inputs(key.layer_idx):
            raise CalibrationError(f"no H for matrix {key}: the model has no such matrix, or it was not wanted")
        if self._layer_idx != key.layer_idx:
            self._move_to(key.layer_idx)
        return read_square(*self._halves[name])

    def close(self) -> None:
        """Forget everything and delete what is in the scratch folder."""
        if self._forward is not None:
            self._forward.close()
        self._forward = None
        self._leave_layer()
        for file in self._scratch.glob("*"):
            if file.is_file():
                file.unlink()

    def _inputs(self, layer_idx: int) -> dict[str, int]:
        wanted = self._wanted
        names = None if wanted is None else {input_name(key) for key in wanted if key.layer_idx == layer_idx}
        return layer_inputs(self._checkpoint, layer_idx, names)

    def _move_to(self, layer_idx: int) -> None:
        """Have H of a layer in the scratch folder, and of no other."""
        self._leave_layer()
        inputs, path = self._inputs(layer_idx), layer_path(self._scratch, layer_idx)
        self._scratch.mkdir(parents=True, exist_ok=True)
        for file in self._scratch.glob("*layer-*"):
            if file != path:
                file.unlink()
        if not self._is_left_over(layer_idx):
            self._gather(layer_idx, inputs, path)
        header = open_layer(path, self.info, layer_idx, inputs)
        self._halves = {name: (header.tensors[name], width) for name, width in inputs.items()}
        self._layer_idx = layer_idx

    def _is_left_over(self, layer_idx: int) -> bool:
        """Whether a killed run of the same computation left this layer's H."""
        try:
            open_layer(layer_path(self._scratch, layer_idx), self.info, layer_idx, self._inputs(layer_idx))
        except CalibrationError:  # it is scratch: gathered again
            return False
        return True

    def _gather(self, layer_idx: int, inputs: Mapping[str, int], path: Path) -> None:
        if self._forward is None:
            self._forward = ForwardPass(
                self._checkpoint, self._tokens, self.info, self._scratch, device=self._device, ram_bytes=self._ram_bytes
            )
        forward = self._forward
        if forward.layer_idx > layer_idx:
            forward.restart()
        while forward.layer_idx < layer_idx:
            forward.advance(self._on_batch(forward, "running", forward.layer_idx))

        def keep(moments: Mapping[str, SecondMoment]) -> None:
            write_layer(path, self.info, layer_idx, inputs, moments)

        forward.gather(self._on_batch(forward, "calibrating", layer_idx), keep, inputs.keys())

    def _on_batch(self, forward: ForwardPass, doing: str, layer_idx: int) -> OnBatch:
        n_layers, n_batches = self._checkpoint.n_layers, forward.n_batches

        def on_batch(batch: int) -> None:
            message = f"{doing} layer {layer_idx + 1} of {n_layers}, batch {batch} of {n_batches}"
            self._progress(batch, n_batches, message)

        return on_batch

    def _leave_layer(self) -> None:
        self._layer_idx, self._halves = None, {}
