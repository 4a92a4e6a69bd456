"""ForwardPass: the original model's hidden states, moved layer by layer, with H gathered on the way.

Calibrations that are stored and those that are computed while they are used come from here, so they have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import torch

from compress_core.calibrate.info import CalibrationInfo
from compress_core.calibrate.observe import observe
from compress_core.calibrate.second_moment import SecondMoment
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.device import find_device, find_dtype
from compress_core.stream.hidden import batches, run_finite
from compress_core.stream.model import StreamedModel
from compress_core.stream.states import DEFAULT_RAM_BYTES, open_states
from compress_core.text.tokens import TokenWindows
from compress_core.version import NUMERICS_VERSION

#: called after each batch with the number of batches done of this layer
OnBatch = Callable[[int], None]


def describe(
    checkpoint: Checkpoint,
    tokens: TokenWindows,
    *,
    source: str,
    seed: int,
    device: str | torch.device,
    dtype: str,
    batch_tokens: int,
) -> CalibrationInfo:
    """What a calibration of these tokens on this machine is made from."""
    return CalibrationInfo(
        model_fingerprint=checkpoint.fingerprint,
        n_layers=checkpoint.n_layers,
        source=source,
        samples=tokens.n_windows,
        length=tokens.length,
        n_tokens=tokens.n_tokens,
        seed=seed,
        token_sha256=tokens.sha256,
        dtype=dtype,
        batch_tokens=batch_tokens,
        device_kind=find_device(device).type,
        numerics_version=NUMERICS_VERSION,
        torch_version=torch.__version__,
    )


class ForwardPass:
    """All samples on their way through the layers. One layer's weights are in memory while it runs, and no others.

    Raises:
        CalibrationError: token ids outside the vocabulary.
        CheckpointError, UnsupportedArchitecture, DeviceNotFound: see ``StreamedModel``.
        OutOfMemory: no room on disk for the hidden states.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: TokenWindows,
        info: CalibrationInfo,
        scratch: Path,
        *,
        device: str | torch.device,
        ram_bytes: int = DEFAULT_RAM_BYTES,
    ) -> None:
        self._checkpoint = checkpoint
        self._tokens = tokens
        self._batch_tokens = info.batch_tokens
        self._model = StreamedModel(DenseWeights(checkpoint), device=find_device(device), dtype=find_dtype(info.dtype))
        tokens.check_vocabulary(self._model.vocab_size)
        shape = (tokens.n_windows, tokens.length, self._model.hidden_size)
        self._states = open_states(scratch, shape, self._model.dtype, owner=info.sha256, ram_bytes=ram_bytes)

    @property
    def layer_idx(self) -> int:
        """The next layer; 0 too where the states are lost or not there yet."""
        return self._states.layer_idx or 0

    @property
    def n_batches(self) -> int:
        """Batches that make a layer's run."""
        return len(self._parts)

    @property
    def _parts(self) -> list[slice]:
        return list(batches(self._tokens.n_windows, self._tokens.length, self._batch_tokens))

    def restart(self) -> None:
        """Embed the tokens: the states are those before layer 0."""
        self._states.begin()
        for part in self._parts:
            ids_BT = torch.from_numpy(self._tokens.ids[part].astype(np.int64))
            self._states.write(part, self._model.embed(ids_BT))
        self._states.commit(0)

    def advance(self, on_batch: OnBatch) -> None:
        """Run the next layer."""
        self._run(on_batch, (), lambda moments: None)

    def gather(
        self,
        on_batch: OnBatch,
        keep: Callable[[Mapping[str, SecondMoment]], None],
        wanted: Collection[str] | None = None,
    ) -> None:
        """Run the next layer and gather H of its inputs, or of those that are wanted.

        ``keep`` is given the moments when the layer's weights are gone, and before the states count as moved on: a run
        that is killed in between gathers them again. They are let go of afterwards.
        """
        self._run(on_batch, wanted, keep)

    def close(self) -> None:
        """Memory and files of the states go."""
        self._states.close()

    def _run(
        self,
        on_batch: OnBatch,
        wanted: Collection[str] | None,
        keep: Callable[[Mapping[str, SecondMoment]], None],
    ) -> None:
        if self._states.layer_idx is None:
            self.restart()
        layer_idx, model = self.layer_idx, self._model
        self._states.begin()
        with (
            model.layer(layer_idx) as layer,
            observe(self._checkpoint, model, layer, layer_idx, wanted) as moments,
        ):
            for done, part in enumerate(self._parts, 1):
                self._states.write(part, run_finite(model, layer_idx, self._states.read(part)))
                on_batch(done)
        keep(moments)
        self._states.commit(layer_idx + 1)
