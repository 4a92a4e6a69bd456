"""Joint losses: KL to the original model and negative log-likelihood of many allocations, in one pass over the layers.

Each layer is read once and each distinct (matrix, config) in it decomposed once, exactly as a compress job does it; the
hidden states of all allocations go through the layer before the next one is touched, so a model never has to fit and
no packed model is written. The original model is one of them, so that KL is exact: its logits and theirs are made next
to each other from the states that left the last layer.

Shapes: A allocations, N windows, T tokens, D hidden width. w_OI.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress_core.calibrate.source import HessianSource
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import DenseWeights, read_matrix
from compress_core.compressed import CompressedMatrix
from compress_core.config import CompressionConfig
from compress_core.device import find_device, find_dtype
from compress_core.errors import ConfigError, NonFiniteValues
from compress_core.evaluate.perplexity import WindowLosses
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.progress import Progress, silent
from compress_core.shared_inputs import SharedInputs
from compress_core.stream.hidden import DEFAULT_BATCH_TOKENS, batches
from compress_core.stream.model import StreamedModel
from compress_core.stream.states import DEFAULT_RAM_BYTES, HiddenStates, open_states
from compress_core.text.tokens import TokenWindows
from compress_core.verify.branches import Branches, LayerConfigs, Move
from compress_core.verify.cells import cell_cost, compress_cells, distinct_cells
from compress_core.verify.meter import Meter
from compress_core.verify.scoring import score_paths
from compress_core.version import NUMERICS_VERSION

#: Ŵ (out_features, in_features) of a matrix at a config, from a caller that has decomposed it before
WeightsOf = Callable[[MatrixSpec, CompressionConfig], Tensor]


@dataclass(frozen=True, eq=False)
class JointLosses:
    """What the original model and A whole allocations make of the same N windows."""

    original: WindowLosses
    #: of each allocation, in the order in which they were given
    losses: tuple[WindowLosses, ...]
    #: (A, N) mean KL(original ‖ allocation) over each window's positions, nats a token
    kl_AN: NDArray[np.float64]

    @property
    def kl_A(self) -> NDArray[np.float64]:
        """Joint KL of each allocation over all windows (which are equally long), nats a token."""
        mean: NDArray[np.float64] = self.kl_AN.mean(axis=1)
        return mean

    @property
    def nll_AN(self) -> NDArray[np.float64]:
        """(A, N) nats, summed over each window's predicted tokens."""
        return np.stack([losses.nll for losses in self.losses])


def joint_losses(
    checkpoint: Checkpoint,
    calibration: HessianSource | None,
    tokens: TokenWindows,
    allocations: Sequence[Mapping[MatrixKey, CompressionConfig]],
    *,
    names: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ram_bytes: int = DEFAULT_RAM_BYTES,
    scratch: Path | None = None,
    weights_of: WeightsOf | None = None,
    on_resume: Callable[[int, int], None] | None = None,
    progress: Progress = silent,
) -> JointLosses:
    """Evaluate whole allocations and the original model on the same windows.

    An allocation's losses are those of the packed model that a compress job makes of it, evaluated in the same batches.
    Equal allocations run once, and those that agree on the first layers go through these together.

    Args:
        calibration: H for each matrix, asked for layer by layer; None is the identity everywhere.
        allocations: each with the configs of its matrices, with ranks that these can have. A matrix without one keeps
            its original weight.
        names: of the allocations, for messages.
        ram_bytes: hidden states of all allocations above this are kept in mapped files.
        scratch: a folder of this computation's own for these files; with ``ram_bytes`` 0 a call that was killed can be
            made again and goes on after the last finished layer. None: a temporary one.
        weights_of: gives Ŵ instead of decomposing it anew; ``calibration`` is then not asked. A call that goes on in
            ``scratch`` must be given the same weights.
        on_resume: called with (done, total) units of progress if an earlier call has left finished layers.
        progress: counts thousandths of the whole work.

    Raises:
        ConfigError: no allocation, names that do not match, or a config for a matrix that the model does not have.
        RankTooLarge: a rank exceeds min(out, in); before any work.
        CalibrationError: token ids outside the vocabulary, or no H for a matrix.
        NonFiniteValues: NaN in a weight, in an allocation's activations or in its losses; each named.
        DeviceNotFound: no such device.
        OutOfMemory: no room on disk for the hidden states.
        Interrupted: by ``progress``.
    """
    names = _names(allocations, names)
    paths = _layer_configs(checkpoint, allocations)
    model = StreamedModel(DenseWeights(checkpoint), device=find_device(device), dtype=find_dtype(dtype))
    tokens.check_vocabulary(model.vocab_size)
    branches = Branches.of(paths)
    shape = (branches.n_places * tokens.n_windows, tokens.length, model.hidden_size)
    with ExitStack() as stack:
        if scratch is None:  # nobody will go on with it
            owner, folder = "", Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bitbudget-states-")))
        else:
            of_weights = None if weights_of else calibration
            owner, folder = _owner(checkpoint, of_weights, tokens, paths, model, batch_tokens), scratch
        states = open_states(folder, shape, model.dtype, owner=owner, ram_bytes=ram_bytes)
        inputs = SharedInputs(calibration, model.device)
        run = _JointRun(checkpoint, model, tokens, branches, states, batch_tokens, names, inputs, weights_of)
        meter = Meter(progress, run.costs())
        meter.begin(states.layer_idx or 0)
        if states.layer_idx and on_resume is not None:
            on_resume(*meter.at())
        run.through_layers(meter)
        found = run.score(meter)
        states.close()
    return found


@dataclass(frozen=True)
class _JointRun:
    """All paths on their way through the layers."""

    checkpoint: Checkpoint
    model: StreamedModel
    tokens: TokenWindows
    branches: Branches
    states: HiddenStates
    batch_tokens: int
    #: of the paths, the original model's first
    names: Sequence[str]
    inputs: SharedInputs
    weights_of: WeightsOf | None

    def costs(self) -> list[float]:
        """Of each layer, and of the scores, in products of a weight and a token."""
        layers = range(self.checkpoint.n_layers)
        head = self.branches.n_places * self.tokens.n_tokens * self._head_cost
        return [*(self._cells_cost(layer) + self._run_cost(layer) for layer in layers), head]

    def through_layers(self, meter: Meter) -> None:
        """Take the states of all paths from the embedding, or from where an earlier call left them, to the end."""
        if self.states.layer_idx is None:
            self._embed()
        for layer_idx in range(self.states.layer_idx or 0, self.checkpoint.n_layers):
            cells = self._decompose(layer_idx, meter)
            self.states.begin()
            self._run(layer_idx, cells, meter)
            self.states.commit(layer_idx + 1)

    def score(self, meter: Meter) -> JointLosses:
        """KL and losses of all paths; those in one place are scored once."""
        places = list(dict.fromkeys(self.branches.places))
        each = len(places) * self._head_cost

        def on_scored(n_positions: int) -> None:
            meter.add(n_positions * each, f"comparing {len(self.names) - 1} allocations with the original model")

        scores = score_paths(self.model, self.states, self.tokens, places, on_scored)
        for path, place in enumerate(self.branches.places):
            number = places.index(place)
            if not (np.isfinite(scores.kl_PN[number]).all() and np.isfinite(scores.nll_PN[number]).all()):
                raise NonFiniteValues(f"the losses of {self.names[path]} are NaN or infinite: a retry cannot help")
        n_tokens = np.full(self.tokens.n_windows, self.tokens.length - 1, dtype=np.int64)
        losses = [
            WindowLosses(scores.nll_PN[places.index(place)], n_tokens, self.tokens.n_bytes, self.tokens.sha256)
            for place in self.branches.places
        ]
        kl_AN = np.stack([scores.kl_PN[places.index(place)] for place in self.branches.places[1:]])
        return JointLosses(losses[0], tuple(losses[1:]), kl_AN)

    # --- one layer

    def _embed(self) -> None:
        """Every path begins in the first place."""
        self.states.begin()
        for part in self._parts():
            ids_BT = torch.from_numpy(self.tokens.ids[part].astype(np.int64))
            self.states.write(part, self.model.embed(ids_BT))
        self.states.commit(0)

    def _decompose(self, layer_idx: int, meter: Meter) -> dict[tuple[MatrixKey, str], CompressedMatrix]:
        """The layer's distinct cells; none where the caller has them."""
        found: dict[tuple[MatrixKey, str], CompressedMatrix] = {}
        for spec, configs in self._cells(layer_idx).items() if self.weights_of is None else ():

            def on_cell(config: CompressionConfig, fraction: float, spec: MatrixSpec = spec) -> None:
                cost = cell_cost(spec, config)
                if fraction < 1:  # lets a cancelled job stop inside a large matrix
                    meter.tell(f"decomposing {spec.key} ({config}), {fraction:.0%}", fraction * cost)
                else:
                    meter.add(cost, f"decomposed {spec.key} ({config})")

            cells = compress_cells(self.checkpoint, spec, configs, self.inputs, self.model.device, on_cell)
            found |= {(spec.key, config_hash): cell for config_hash, cell in cells.items()}
        return found

    def _run(self, layer_idx: int, cells: Mapping[tuple[MatrixKey, str], CompressedMatrix], meter: Meter) -> None:
        """Set the layer in each way that a path wants, and run that path's states through it."""
        specs = self.checkpoint.layer_matrices(layer_idx)
        settings = self.branches.layers[layer_idx]
        each = self._move_cost(layer_idx) / len(list(self._parts()))
        now: LayerConfigs = (None,) * len(specs)
        with self.model.layer(layer_idx) as layer:
            for number, setting in enumerate(settings, 1):
                for spec, before, config in zip(specs, now, setting.configs, strict=True):
                    if _hash(before) != _hash(config):
                        self._put(layer, spec, config, cells)
                now = setting.configs
                for move in setting.moves:
                    for part in self._parts():
                        self._move(layer_idx, move, part)
                        meter.add(each, f"layer {layer_idx + 1}: variant {number} of {len(settings)}")

    def _put(
        self,
        layer: nn.Module,
        spec: MatrixSpec,
        config: CompressionConfig | None,
        cells: Mapping[tuple[MatrixKey, str], CompressedMatrix],
    ) -> None:
        """Give a matrix of a loaded layer the weight that it has at a config, or its original one."""
        if config is None:
            w_OI = read_matrix(self.checkpoint, spec)
        elif self.weights_of is not None:
            w_OI = self.weights_of(spec, config)
        else:
            w_OI = cells[spec.key, config.config_hash].dequantize(device=self.model.device)
        if not bool(torch.isfinite(w_OI).all()):
            raise NonFiniteValues(f"matrix {spec.key} at {config} has NaN or infinite entries: a retry cannot help")
        self.model.weight_view(layer, spec).copy_(w_OI)

    def _move(self, layer_idx: int, move: Move, part: slice) -> None:
        """Run some windows of one path through the layer as it is set."""
        n_windows = self.tokens.n_windows
        source, target = (
            slice(place * n_windows + part.start, place * n_windows + part.stop) for place in (move.source, move.target)
        )
        out = self.model.run_layer(layer_idx, self.states.read(source).to(self.model.device))
        if not bool(torch.isfinite(out).all()):
            raise NonFiniteValues(
                f"the hidden states of {self.names[move.path]} became NaN or infinite in layer {layer_idx} "
                f"({self.model.dtype} on {self.model.device}): use float32, or leave it out; a retry cannot help"
            )
        self.states.write(target, out)

    def _parts(self) -> list[slice]:
        return list(batches(self.tokens.n_windows, self.tokens.length, self.batch_tokens))

    # --- costs

    def _cells(self, layer_idx: int) -> dict[MatrixSpec, tuple[CompressionConfig, ...]]:
        settings = self.branches.layers[layer_idx]
        return distinct_cells(self.checkpoint.layer_matrices(layer_idx), [setting.configs for setting in settings])

    def _cells_cost(self, layer_idx: int) -> float:
        if self.weights_of is not None:
            return 0.0
        return sum(cell_cost(spec, config) for spec, configs in self._cells(layer_idx).items() for config in configs)

    def _move_cost(self, layer_idx: int) -> float:
        return float(self.tokens.n_tokens * sum(spec.n_weights for spec in self.checkpoint.layer_matrices(layer_idx)))

    def _run_cost(self, layer_idx: int) -> float:
        n_moves = sum(len(setting.moves) for setting in self.branches.layers[layer_idx])
        return n_moves * self._move_cost(layer_idx)

    @property
    def _head_cost(self) -> float:
        """Of one position's logits and what is done with them."""
        return float(self.model.vocab_size * (self.model.hidden_size + 50))


def _hash(config: CompressionConfig | None) -> str:
    return "" if config is None else config.config_hash


def _names(allocations: Sequence[Mapping[MatrixKey, CompressionConfig]], names: Sequence[str] | None) -> list[str]:
    if not allocations:
        raise ConfigError("no allocation was given: there is nothing to compare with the original model")
    if names is None:
        names = [f"allocation {number} of {len(allocations)}" for number in range(1, len(allocations) + 1)]
    if len(names) != len(allocations):
        raise ConfigError(f"{len(allocations)} allocations have {len(names)} names")
    return ["the original model", *names]


def _layer_configs(
    checkpoint: Checkpoint, allocations: Sequence[Mapping[MatrixKey, CompressionConfig]]
) -> list[list[LayerConfigs]]:
    """Each allocation as the configs of each layer's matrices; checked."""
    specs = {spec.key: spec for spec in checkpoint.matrices()}
    for items in allocations:
        for key, config in items.items():
            if key not in specs:
                raise ConfigError(f"a config for matrix {key}, which {checkpoint.path} does not have")
            config.check_shape(specs[key].out_features, specs[key].in_features)
    layers = [checkpoint.layer_matrices(layer_idx) for layer_idx in range(checkpoint.n_layers)]
    return [[tuple(items.get(spec.key) for spec in layer) for layer in layers] for items in allocations]


def _owner(
    checkpoint: Checkpoint,
    calibration: HessianSource | None,
    tokens: TokenWindows,
    paths: Sequence[Sequence[LayerConfigs]],
    model: StreamedModel,
    batch_tokens: int,
) -> str:
    """Hash of everything that the hidden states depend on."""
    made_of = {
        "checkpoint": checkpoint.fingerprint,
        "calibration": None if calibration is None else calibration.info.sha256,
        "tokens": tokens.sha256,
        "allocations": [[[_hash(config) for config in layer] for layer in path] for path in paths],
        "dtype": str(model.dtype),
        "device": model.device.type,
        "batch_tokens": batch_tokens,
        "torch": torch.__version__,
        "numerics": NUMERICS_VERSION,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
