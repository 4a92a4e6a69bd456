"""What the allocation benchmarks share: small real models whose matrices can be swapped, and every cell of a menu.

A cell is one (matrix, config): its errors, its bytes and the weights that it dequantises to. Cells and losses are made
once and kept in a folder. Text: ``calibrate`` makes H, ``measure`` the sensitivities, ``select`` chooses and checks,
``report`` is looked at once.

Shapes: n matrices, k configs, N windows.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_core import NUMERICS_VERSION, CompressionConfig
from compress_core.allocate import AllocationProblem, Cell, KLAnchor, class_sensitivities
from compress_core.allocate.company import LIMITS
from compress_core.calibrate.calibration import Calibration
from compress_core.calibrate.run import calibrate_model
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.context import prepare_matrix
from compress_core.decompose import compress_prepared
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.pack.layout import fixed_bytes
from compress_core.precision import exact_float32
from compress_core.shared_inputs import SharedInputs
from compress_core.sweep import Yardstick, in_groups
from compress_core.text.source import Split, TextSource, split_text
from compress_core.text.tokens import TokenWindows, fixed_windows, sampled_windows
from compress_core.verify.joint import joint_losses

ROOT = Path(__file__).resolve().parent.parent
#: tokens of every window
LENGTH = 256
#: windows that H is made from
CALIBRATION_WINDOWS = 64
#: allocations whose hidden states are in memory together
_AT_ONCE = 64

#: one matrix at one config, its rank cut to the matrix
CellKey = tuple[MatrixKey, str]
Choice = Mapping[MatrixKey, CompressionConfig]
Say = Callable[[str], None]


@dataclass(frozen=True)
class LabCell:
    """What one config does to one matrix."""

    matrix: str
    config_hash: str
    nbytes: int
    #: tr(D H Dᵀ) / tr(W H Wᵀ)
    error: float
    #: ‖D‖² / ‖W‖²
    normalized_mse: float
    #: tr(D H Dᵀ): mean squared change of the output, summed over its features
    absolute_error: float


@dataclass(frozen=True, eq=False)
class Losses:
    """Of a model on N windows of one length."""

    #: (N,) KL(original ‖ model), nats a token, mean over a window's positions
    kl_N: NDArray[np.float64]
    #: (N,) negative log-likelihood, nats, summed over a window's predicted tokens
    nll_N: NDArray[np.float64]

    @property
    def kl(self) -> float:
        return float(self.kl_N.mean())

    @property
    def kl_se(self) -> float:
        return float(self.kl_N.std(ddof=1) / np.sqrt(len(self.kl_N)))

    @property
    def n_tokens(self) -> int:
        """Predicted tokens of each window."""
        return LENGTH - 1

    @property
    def nll(self) -> float:
        """Nats a token."""
        return float(self.nll_N.mean()) / (LENGTH - 1)

    @property
    def ppl(self) -> float:
        return float(np.exp(self.nll))


@dataclass(frozen=True)
class ClassWeights:
    """a_i in nats per unit of error: over all anchors, and for the cells without and with L·R."""

    all_cells: Mapping[MatrixKey, float]
    rank_0: Mapping[MatrixKey, float]
    low_rank: Mapping[MatrixKey, float]


class Lab:
    """A model, its text, its H, and the cells that were made so far, all below one folder.

    Raises:
        CheckpointError, CalibrationError: the model or its text is not there.
    """

    def __init__(self, name: str, model: Path, text: TextSource, folder: Path) -> None:
        self.name = name
        self.folder = folder / f"{name}-v{NUMERICS_VERSION}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint: Checkpoint = open_checkpoint(model)
        self.specs: tuple[MatrixSpec, ...] = self.checkpoint.matrices()
        self.text = text
        self._cells: dict[CellKey, LabCell] = {}
        if self._table.exists():
            for line in self._table.read_text().splitlines():
                cell = LabCell(**json.loads(line))
                self._cells[MatrixKey.parse(cell.matrix), cell.config_hash] = cell

    @property
    def _table(self) -> Path:
        return self.folder / "cells.jsonl"

    @property
    def n_weights(self) -> int:
        return sum(spec.n_weights for spec in self.specs)

    @cached_property
    def calibration(self) -> Calibration:
        tokens = sampled_windows(
            self.checkpoint.path, self._split("calibrate"), samples=CALIBRATION_WINDOWS, length=LENGTH, seed=0
        )
        path = self.folder / "calibration"
        return calibrate_model(self.checkpoint, tokens, path, source=str(self.text.to_dict()), seed=0)

    def windows(self, split: Split, count: int | None) -> TokenWindows:
        """That many windows, evenly spread over a split; None: all."""
        return fixed_windows(self.checkpoint.path, self._split(split), LENGTH, limit=count)

    def _split(self, split: Split) -> str:
        return split_text(self.text, split)

    # --- cells

    def sweep(self, menu: Sequence[CompressionConfig], say: Say = lambda _: None) -> None:
        """Make the cells of a menu that are not there yet."""
        shared_inputs = SharedInputs(self.calibration, torch.device("cpu"))
        for spec in self.specs:
            clamped = dict.fromkeys(config.clamped(spec.out_features, spec.in_features) for config in menu)
            missing = [config for config in clamped if (spec.key, config.config_hash) not in self._cells]
            if not missing:
                continue
            say(f"{self.name} {spec.key}: {len(missing)} configs")
            shared = shared_inputs.of(spec)
            weight = read_matrix(self.checkpoint, spec).float()
            with exact_float32(), torch.no_grad():
                context = prepare_matrix(weight, shared.h_II, 0, torch.device("cpu"), shared.context(0))
                yardstick = Yardstick(context.raw_w_OI, context.hessian)
                energy = _energy(weight, shared.hessian)
                for number in in_groups(missing):
                    compressed = compress_prepared(context, missing[number])
                    found = yardstick.measure(compressed)
                    path = self._weights_path(spec.key, missing[number])
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.save(path, compressed.dequantize().numpy())
                    cell = LabCell(
                        str(spec.key),
                        missing[number].config_hash,
                        found.nbytes,
                        found.calibration_weighted_error,
                        found.normalized_mse,
                        found.calibration_weighted_error * energy,
                    )
                    self._cells[spec.key, cell.config_hash] = cell
                    with self._table.open("a") as file:
                        file.write(json.dumps(asdict(cell)) + "\n")

    def cell(self, spec: MatrixSpec, config: CompressionConfig) -> LabCell:
        return self._cells[spec.key, config.clamped(spec.out_features, spec.in_features).config_hash]

    def weight(self, spec: MatrixSpec, config: CompressionConfig) -> Tensor:
        """What the matrix dequantises to, (out, in) float32."""
        path = self._weights_path(spec.key, config.clamped(spec.out_features, spec.in_features))
        return torch.from_numpy(np.load(path))

    # --- losses

    def losses(self, windows: TokenWindows, choices: Sequence[Choice], say: Say = lambda _: None) -> list[Losses]:
        """Of each choice, in one pass for those that are not known yet; an empty choice is the original model."""
        known = self._known_losses(windows)
        names = [choice_hash(choice) for choice in choices]
        missing = {name: choice for name, choice in zip(names, choices, strict=True) if name not in known}
        todo = list(missing)
        for begin in range(0, len(todo), _AT_ONCE):
            part = todo[begin : begin + _AT_ONCE]
            say(f"{self.name}: losses of {begin + len(part)} of {len(todo)}")
            found = joint_losses(
                self.checkpoint, None, windows, [missing[name] for name in part], weights_of=self.weight
            )
            with self._losses_path(windows).open("a") as file:
                for name, kl_N, nll_N in zip(part, found.kl_AN, found.nll_AN, strict=True):
                    known[name] = Losses(kl_N, nll_N)
                    file.write(json.dumps([name, kl_N.tolist(), nll_N.tolist()]) + "\n")
        return [known[name] for name in names]

    def isolated(
        self, windows: TokenWindows, menu: Sequence[CompressionConfig], say: Say = lambda _: None
    ) -> NDArray[np.float64]:
        """(n, k, N) KL with one matrix alone compressed, for every cell of a menu."""
        choices = [
            {spec.key: config.clamped(spec.out_features, spec.in_features)} for spec in self.specs for config in menu
        ]
        kl = np.array([losses.kl_N for losses in self.losses(windows, choices, say)])
        return kl.reshape(len(self.specs), len(menu), -1)

    def restored(
        self,
        windows: TokenWindows,
        config: CompressionConfig,
        groups: Sequence[Collection[MatrixKey]],
        say: Say = lambda _: None,
    ) -> NDArray[np.float64]:
        """(len(groups),) KL of the model at one config everywhere, less that with one group at its original weights."""
        everywhere = self.uniform(config)
        rest = [{key: c for key, c in everywhere.items() if key not in group} for group in groups]
        full, *partly = self.losses(windows, [everywhere, *rest], say)
        return np.array([full.kl - losses.kl for losses in partly])

    def layer_factors(
        self, windows: TokenWindows, configs: Sequence[CompressionConfig], say: Say = lambda _: None
    ) -> NDArray[np.float64]:
        """(n_layers,) what damage in a layer costs in company, over what it costs alone; configs averaged in log.

        In company: what restoring the layer takes off the KL of the model at one config everywhere. Alone: the sum of
        its matrices' isolated KLs at that config.
        """
        layers = [[s.key for s in self.checkpoint.layer_matrices(at)] for at in range(self.checkpoint.n_layers)]
        logs = []
        for config in configs:
            company_L = self.restored(windows, config, layers, say)
            alone_n = self.isolated(windows, [config], say).mean((1, 2))
            alone = dict(zip([s.key for s in self.specs], alone_n, strict=True))
            alone_L = np.array([sum(alone[key] for key in of) for of in layers])
            logs.append(np.log(np.clip(company_L / alone_L, *LIMITS)))
        return np.exp(np.mean(logs, axis=0))

    def uniform(self, config: CompressionConfig) -> Choice:
        """One config for every matrix, its rank cut to each."""
        return {s.key: config.clamped(s.out_features, s.in_features) for s in self.specs}

    def anchors(
        self, windows: TokenWindows, configs: Sequence[CompressionConfig], say: Say = lambda _: None
    ) -> list[KLAnchor]:
        """Isolated KL of every matrix at each of these configs, as sensitivities are estimated from it."""
        kl_nkN = self.isolated(windows, configs, say)
        return [
            KLAnchor(
                spec.key,
                self.cell(spec, config).error,
                float(kl_N.mean()),
                float(kl_N.std(ddof=1) / np.sqrt(kl_N.size)),
                tuple(kl_N.tolist()),
                config.rank > 0,
            )
            for spec, kl_kN in zip(self.specs, kl_nkN, strict=True)
            for config, kl_N in zip(configs, kl_kN, strict=True)
        ]

    def class_weights(
        self, windows: TokenWindows, configs: Sequence[CompressionConfig], say: Say = lambda _: None
    ) -> ClassWeights:
        """Shrunk sensitivities of the cells without and with L·R."""
        found = class_sensitivities(self.anchors(windows, configs, say))
        values = {name: {key: s.value for key, s in of.items()} for name, of in found.items()}
        everything = values["all"]
        return ClassWeights(everything, values.get("rank0", everything), values.get("low_rank", everything))

    def predicted(self, menu: Sequence[CompressionConfig], weights: ClassWeights) -> NDArray[np.float64]:
        """(n, k) a·ε, nats a token."""
        return np.array(
            [
                [
                    (weights.low_rank if config.rank else weights.rank_0)[spec.key] * self.cell(spec, config).error
                    for config in menu
                ]
                for spec in self.specs
            ]
        )

    def nbytes(self, choice: Choice) -> int:
        """Of the matrices of a choice."""
        return sum(self.cell(spec, choice[spec.key]).nbytes for spec in self.specs)

    def _losses_path(self, windows: TokenWindows) -> Path:
        return self.folder / f"losses-{windows.sha256[:12]}.jsonl"

    def _known_losses(self, windows: TokenWindows) -> dict[str, Losses]:
        path = self._losses_path(windows)
        lines = path.read_text().splitlines() if path.exists() else []
        rows = (json.loads(line) for line in lines)
        return {name: Losses(np.array(kl), np.array(nll)) for name, kl, nll in rows}

    def choice(self, menu: Sequence[CompressionConfig], columns: NDArray[np.int64]) -> Choice:
        """The configs, ranks cut, that a row of columns names."""
        return {
            spec.key: menu[int(column)].clamped(spec.out_features, spec.in_features)
            for spec, column in zip(self.specs, columns, strict=True)
        }

    # --- problems

    def problem(
        self,
        menu: Sequence[CompressionConfig],
        *,
        weights: Mapping[MatrixKey, float] | None = None,
        shape: str = "error",
        table: NDArray[np.float64] | None = None,
    ) -> AllocationProblem:
        """The allocation problem of a menu: a_i × a cell's ``shape`` (a field of :class:`LabCell`), or a whole table
        (n, k) of nats."""
        cells: dict[CellKey, Cell] = {}
        for i, spec in enumerate(self.specs):
            for j, config in enumerate(menu):
                cell = self.cell(spec, config)
                value = getattr(cell, shape) if table is None else table[i, j]
                cells[spec.key, cell.config_hash] = Cell(max(0.0, float(value)), cell.nbytes)
        return AllocationProblem.from_cells(
            self.specs, menu, cells, weights=weights, fixed_bytes=fixed_bytes(self.checkpoint)
        )

    def shape_table(self, menu: Sequence[CompressionConfig], shape: str) -> NDArray[np.float64]:
        """(n, k) of one field of the cells."""
        return np.array([[getattr(self.cell(spec, config), shape) for config in menu] for spec in self.specs])

    def _weights_path(self, key: MatrixKey, config: CompressionConfig) -> Path:
        return self.folder / "weights" / config.config_hash / f"{key}.npy"


def choice_hash(choice: Choice) -> str:
    """24 hex digits that identify a choice."""
    text = ",".join(sorted(f"{key}:{config.config_hash}" for key, config in choice.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _energy(weight: Tensor, hessian: Tensor | None) -> float:
    """tr(W H Wᵀ)."""
    w = weight.double()
    return float((w @ hessian.double() * w).sum()) if hessian is not None else float(w.square().sum())


def open_labs(names: Iterable[str], shared: Path, folder: Path) -> Iterator[Lab]:
    """The demo model on the standard library's text; stories260K on TinyStories, from the folder of shared data.

    A model that is not there is left out, and said to be.
    """
    for name in names:
        if name == "demo":
            yield Lab(name, ROOT / "demo" / "model", TextSource(), folder)
            continue
        model, text = shared / "data" / "models" / name, shared / "data" / "tinystories" / "tinystories_val.txt"
        if not model.is_dir():
            progress(f"{name} is left out: there is no {model}, give the folder that has data/models with --shared")
            continue
        yield Lab(name, model, TextSource(kind="file", path=text), folder)


def machine() -> str:
    """Date, versions and machine, as pages of results tell them."""
    load = f", shared with other work (load {os.getloadavg()[0]:.0f})" if os.getloadavg()[0] > 1.5 else ""
    return (
        f"{date.today().isoformat()}; numerics version {NUMERICS_VERSION}, Python {platform.python_version()}, "
        f"torch {torch.__version__}; {os.cpu_count()} cores ({platform.machine()}){load}, one thread."
    )


def progress(message: str) -> None:
    """To the terminal, beside the results."""
    sys.stderr.write(f"{time.process_time():.0f} s {message}\n")
