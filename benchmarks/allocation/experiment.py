"""One model with its objectives, and allocations that these are tried on.

Shapes: n matrices, k configs, N windows, L layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.allocation_lab import Lab, Losses, Say
from compress_core import CompressionConfig
from compress_core.allocate import (
    KLAnchor,
    estimate_sensitivities,
    random_allocations,
    solve_allocation,
    uniform_candidates,
)
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.sensitivity.approximations import Approximation, Approximations
from compress_core.sensitivity.bench import Bench
from compress_core.sensitivity.fisher import fisher_sensitivity
from compress_core.sensitivity.higgs import Noise, noise_sensitivity
from compress_core.sensitivity.result import SensitivityResult
from compress_core.text.tokens import TokenWindows

Table = NDArray[np.float64]
BITS = (2, 3, 4, 5)
CODEBOOK = "scalar"
#: allocations a budget: random ones, and near-optimal ones (counted in the first number)
COUNT, NEAR, WITHIN = 40, 10, 0.005
NOISES = (Noise(0.05), Noise(0.1))


@dataclass(frozen=True)
class Setting:
    """What is tried on one model."""

    ranks: tuple[int, ...]
    #: windows of the measure split for sensitivities, and of the select split for joint KL
    measure: int
    select: int
    #: bits a weight of the budgets that objectives were chosen at
    budgets: tuple[float, ...]
    #: and of one that confirms, with other draws
    confirm: float

    @property
    def menu(self) -> list[CompressionConfig]:
        return [CompressionConfig(b_q=b, rank=r, codebook=CODEBOOK) for b in BITS for r in self.ranks]


SETTINGS = {
    "demo": Setting((0, 8, 16, 32), measure=8, select=16, budgets=(2.8, 3.5), confirm=2.4),
    "stories260K": Setting((0, 4, 8, 16), measure=16, select=32, budgets=(3.2, 4.0), confirm=3.6),
}


@dataclass(frozen=True, eq=False)
class Objective:
    """What it says a cell costs, and so an allocation: the sum of its cells."""

    name: str
    #: (n, k)
    table: Table
    #: nats a token; else only the ranking and the log slope mean something
    in_nats: bool
    #: evaluations of the model per matrix of the sweep's menu
    evaluations: float
    #: (κ, ρ) of a link: what is predicted of a whole model is κ·(sum of its cells)^ρ
    link: tuple[float, float] = (1.0, 1.0)

    def predicted(self, choice: NDArray[np.int64]) -> float:
        factor, power = self.link
        return factor * float(self.table[np.arange(len(choice)), choice].sum()) ** power


@dataclass(frozen=True, eq=False)
class Trial:
    """An allocation and what it really does."""

    kind: str
    choice: NDArray[np.int64]
    losses: Losses


class KeptApproximations(Approximations):
    """Those of a lab, which has made all cells already."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab.checkpoint, None, torch.device("cpu"))
        self._lab = lab

    def of(self, spec: MatrixSpec, config: CompressionConfig) -> Approximation:
        return Approximation(self._lab.weight(spec, config), self._lab.cell(spec, config).error)

    def has(self, spec: MatrixSpec, config: CompressionConfig) -> bool:
        return True


class Experiment:
    """One model: its objectives, and allocations at its budgets."""

    def __init__(self, lab: Lab, setting: Setting, say: Say) -> None:
        self.lab, self.setting, self.say = lab, setting, say
        self.menu = setting.menu
        lab.sweep(self.menu, say)
        self.error = lab.shape_table(self.menu, "error")
        self.nbytes = lab.problem(self.menu).nbytes

    @cached_property
    def measure(self) -> TokenWindows:
        return self.lab.windows("measure", self.setting.measure)

    @cached_property
    def select(self) -> TokenWindows:
        return self.lab.windows("select", self.setting.select)

    @cached_property
    def isolated_nkN(self) -> NDArray[np.float64]:
        return self.lab.isolated(self.measure, self.menu, self.say)

    def column(self, b_q: int, rank: int) -> int:
        return next(j for j, config in enumerate(self.menu) if (config.b_q, config.rank) == (b_q, rank))

    # --- objectives

    def sensitivities(self, columns: Sequence[int]) -> Table:
        """(n,) shrunk a_i, nats per unit of error, from these anchors."""
        anchors = []
        for i, spec in enumerate(self.lab.specs):
            for j in columns:
                kl_N = self.isolated_nkN[i, j]
                se = float(kl_N.std(ddof=1) / np.sqrt(kl_N.size))
                anchors.append(
                    KLAnchor(spec.key, float(self.error[i, j]), float(kl_N.mean()), se, tuple(kl_N.tolist()))
                )
        return self._in_order({key: found.value for key, found in estimate_sensitivities(anchors).items()})

    def averaged(self, name: str, *anchors: tuple[int, int]) -> Objective:
        """One a_i a matrix, averaged over its anchors in log."""
        a_n = self.sensitivities([self.column(*anchor) for anchor in anchors])
        return Objective(name, a_n[:, None] * self.error, in_nats=True, evaluations=len(anchors))

    def by_class(self, name: str, rank_0: tuple[int, int], low_rank: tuple[int, int]) -> Objective:
        """Two a_i a matrix: the anchor of rank 0 weighs the cells without L·R, the other one those with it."""
        without_n, with_n = (self.sensitivities([self.column(*anchor)]) for anchor in (rank_0, low_rank))
        has_factors_k = np.array([config.rank > 0 for config in self.menu])
        a_nk = np.where(has_factors_k[None], with_n[:, None], without_n[:, None])
        return Objective(name, a_nk * self.error, in_nats=True, evaluations=2)

    def layer_level(self, b_q: int, rank: int) -> Objective:
        """One a a layer: KL of the whole layer at one config, over the sum of its matrices' errors."""
        column = self.column(b_q, rank)
        layers = self._layers
        choices = [
            {
                s.key: self.menu[column].clamped(s.out_features, s.in_features)
                for s in self.lab.specs
                if s.key.layer_idx == at
            }
            for at in range(self.lab.checkpoint.n_layers)
        ]
        kl_L = np.array([losses.kl for losses in self.lab.losses(self.measure, choices, self.say)])
        error_L = np.array([self.error[layers == at, column].sum() for at in range(len(kl_L))])
        a_n = (kl_L / error_L)[layers]
        return Objective("one a a layer × error", a_n[:, None] * self.error, True, len(kl_L) / len(layers))

    def in_company(self, base: Objective, *keys: tuple[int, int]) -> Objective:
        """Corrected layer by layer for what damage costs in a model that is compressed everywhere."""
        factors_L = self.lab.layer_factors(self.measure, [self.menu[self.column(*key)] for key in keys])
        more = len(keys) * self.lab.checkpoint.n_layers / len(self.lab.specs)
        name = f"by class, layers in company at {' and '.join(named(key) for key in keys)}"
        return Objective(name, base.table * factors_L[self._layers][:, None], True, base.evaluations + more)

    def linked(self, base: Objective, fine: tuple[int, int], coarse: tuple[int, int]) -> Objective:
        """The line in log through the whole model at both anchors, which measuring layers in company has run anyway.

        It changes what is predicted of an allocation, not its rank among others.
        """
        columns = [self.column(*fine), self.column(*coarse)]
        found = self.lab.losses(self.measure, [self.lab.uniform(self.menu[column]) for column in columns])
        joint = np.log([losses.kl for losses in found])
        summed = np.log([base.table[:, column].sum() for column in columns])
        power = float((joint[1] - joint[0]) / (summed[1] - summed[0]))
        link = (float(np.exp(joint[0] - power * summed[0])), power)
        return replace(base, name=f"{base.name}, linked", link=link)

    def restored(self, key: tuple[int, int]) -> Objective:
        """a_i from restoring one matrix at a time in a model that is uniformly compressed."""
        config = self.menu[self.column(*key)]
        restored_n = self.lab.restored(self.measure, config, [[spec.key] for spec in self.lab.specs])
        floor = 1e-3 * restored_n.max()
        a_n = np.maximum(restored_n, floor) / self.error[:, self.column(*key)]
        return Objective(f"restore one of {named(key)}", a_n[:, None] * self.error, in_nats=True, evaluations=1)

    def higgs(self) -> Objective:
        """α_i × normalized MSE, α_i from Gaussian noise at two levels."""
        path = self._path("higgs")
        if not path.exists():
            results = noise_sensitivity(Bench(self.lab.checkpoint, self.measure), NOISES)
            path.write_text(json.dumps(self._estimated(results).tolist()))
        a_n = np.array(json.loads(path.read_text()))
        table = a_n[:, None] * self.lab.shape_table(self.menu, "normalized_mse")
        return Objective("HIGGS: α × normalised MSE", table, in_nats=True, evaluations=len(NOISES))

    def fishers(self, *anchors: tuple[int, int]) -> list[Objective]:
        """Second-order KL of the anchors from gradients, averaged in log per unit of error."""
        names = {"fisher_diagonal": "diagonal Fisher × error", "fisher_output": "output Fisher × error"}
        path = self._path("fisher-" + "-".join(map(named, anchors)).replace(" ", ""))
        if not path.exists():
            configs = [self.menu[self.column(*anchor)] for anchor in anchors]
            results = fisher_sensitivity(
                Bench(self.lab.checkpoint, self.measure), KeptApproximations(self.lab), configs
            )
            found = {method: self._estimated([r for r in results if r.method == method]).tolist() for method in names}
            path.write_text(json.dumps(found))
        found = json.loads(path.read_text())
        return [
            Objective(name, np.array(found[method])[:, None] * self.error, in_nats=True, evaluations=0)
            for method, name in names.items()
        ]

    def _path(self, name: str) -> Path:
        return self.lab.folder / f"{name}-{self.measure.sha256[:12]}.json"

    def objectives(self) -> list[Objective]:
        middle, largest = self.setting.ranks[2], self.setting.ranks[-1]
        shapes = {"absolute error": "absolute_error", "normalised MSE": "normalized_mse", "plain error": "error"}
        fine, coarse = (3, 0), (2, middle)
        by_class = self.by_class(f"anchors by class: {named(fine)} / {named(coarse)}", fine, coarse)
        in_company = self.in_company(by_class, fine, coarse)
        return [
            *(Objective(name, self.lab.shape_table(self.menu, shape), False, 0) for name, shape in shapes.items()),
            self.layer_level(*fine),
            *self.fishers(fine, coarse),
            self.higgs(),
            self.averaged(f"one anchor: {named(fine)}", fine),
            self.averaged(f"anchors averaged: 2b r0, {named((5, largest))}", (2, 0), (5, largest)),
            self.averaged("anchors averaged: 2b r0, 3b r0", (2, 0), (3, 0)),
            by_class,
            Objective("isolated KL of every cell", self.isolated_nkN.mean(2), True, len(self.menu)),
            self.restored(fine),
            self.in_company(by_class, fine),
            self.in_company(by_class, coarse),
            in_company,
            self.linked(in_company, fine, coarse),
        ]

    def _estimated(self, results: Sequence[SensitivityResult]) -> Table:
        anchors = [KLAnchor(r.key, r.error, r.kl_mean, r.kl_standard_error, r.kl_per_sequence) for r in results]
        return self._in_order({key: s.value for key, s in estimate_sensitivities(anchors).items()})

    @property
    def _layers(self) -> NDArray[np.int64]:
        return np.array([spec.key.layer_idx for spec in self.lab.specs])

    def _in_order(self, values: Mapping[MatrixKey, float]) -> Table:
        return np.array([values[spec.key] for spec in self.lab.specs])

    # --- allocations

    def losses(self, choices: Sequence[NDArray[np.int64]]) -> list[Losses]:
        """On the select split."""
        return self.lab.losses(self.select, [self.lab.choice(self.menu, choice) for choice in choices], self.say)

    def trials(self, budget_bytes: int, near: Objective, seed: int) -> list[Trial]:
        """Random and near-optimal allocations; the latter are near the optimum of one objective."""
        problem = self.lab.problem(self.menu, table=near.table)
        found = random_allocations(problem, budget_bytes, count=COUNT, seed=seed, within=WITHIN, near=NEAR)
        columns = {config: j for j, config in enumerate(self.menu)}
        choices = [np.array([columns[item.menu_config] for item in allocation.items]) for allocation in found]
        return [
            Trial(allocation.kind, choice, losses)
            for allocation, choice, losses in zip(found, choices, self.losses(choices), strict=True)
        ]

    def uniforms(self, budget_bytes: int) -> dict[str, Losses]:
        """Every uniform config that fits."""
        fitting = [c.config for c in uniform_candidates(self.lab.problem(self.menu)) if c.total_bytes <= budget_bytes]
        rows = [np.full(len(self.lab.specs), self.menu.index(config)) for config in fitting]
        return {str(config): losses for config, losses in zip(fitting, self.losses(rows), strict=True)}

    def optimum(self, objective: Objective, budget_bytes: int) -> NDArray[np.int64]:
        return solve_allocation(np.maximum(objective.table, 0), self.nbytes, budget_bytes).choice


def named(key: tuple[int, int]) -> str:
    """A short name of (b_q, rank)."""
    return f"{key[0]}b r{key[1]}"
