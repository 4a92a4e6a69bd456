"""From a StudyConfig to the tree of its jobs: a pure function, steps in the order in which people read them."""

from __future__ import annotations

from typing import Any

from compress_core.config import CompressionConfig
from results_db.params import BudgetSpec, DatasetSpec
from server.studies.builder import StudySteps
from server.studies.choice import BudgetChoice
from server.studies.schemas import StudyConfig
from server.studies.steps import CHOSEN, OPTIMAL, PHASE0_MANUAL, PHASE0_UNIFORM, UNIFORM, Step, budget_suffix


def dataset_names(config: StudyConfig) -> list[str]:
    """One name a dataset, made unique by a number."""
    names: list[str] = []
    for text in config.datasets:
        base = text.name.replace(":", "-")
        name, n = base, 2
        while name in names:
            name, n = f"{base}-{n}", n + 1
        names.append(name)
    return names


def resolved_budgets(config: StudyConfig) -> list[BudgetSpec]:
    """The budgets with their configs completed; by default the bytes of one uniform config."""
    if not config.budgets:
        grid = config.grid
        middle = {"b_q": sorted(grid.b_q)[len(grid.b_q) // 2], "rank": sorted(grid.rank)[len(grid.rank) // 2]}
        fields = config.phase0.uniform if config.phase0 else middle
        return [BudgetSpec(uniform=grid.complete(fields).to_dict())]
    return [
        b if b.uniform is None else BudgetSpec(uniform=config.grid.complete(b.uniform).to_dict())
        for b in config.budgets
    ]


def anchors(config: StudyConfig) -> list[CompressionConfig]:
    """The anchors given; by default a fine one of rank 0 and a coarse one of a middle rank.

    What a unit of error costs hardly depends on the bits, but on whether there is a low-rank part: each kind of config
    is weighed by an anchor of its own.
    """
    grid = config.grid
    bits, ranks = sorted(grid.b_q), sorted(rank for rank in grid.rank if rank > 0)
    given = config.sensitivity.anchors
    if given is None and ranks:
        given = [{"b_q": bits[:2][-1], "rank": 0}, {"b_q": bits[0], "rank": ranks[len(ranks) // 2]}]
    if given is None:
        given = [{"b_q": bits[0], "rank": 0}, {"b_q": bits[-1], "rank": 0}]
    return list({c.config_hash: c for c in map(grid.complete, given)}.values())


def plan_study(config: StudyConfig, model_id: str, *, fetch: bool) -> list[Step]:
    """All steps; ``fetch`` puts the download of a hub model first."""
    return _Planner(config, model_id, fetch=fetch).steps.steps


class _Planner:
    """Adds steps phase by phase; each phase waits for the gate of the one before."""

    def __init__(self, config: StudyConfig, model_id: str, *, fetch: bool) -> None:
        self.config = config
        self.phases = set(config.phases)
        self.datasets = list(zip(dataset_names(config), config.datasets, strict=True))
        self.budgets = resolved_budgets(config)
        self.steps = StudySteps(config, model_id, fetch=fetch)
        self.anchors = [anchor.to_dict() for anchor in anchors(config)]
        self.needs_sensitivity = 0 in self.phases or (3 in self.phases and config.objective != "error")
        #: of each budget, what is compressed and evaluated
        self.contenders: list[list[str]] = []
        self._begin(fetch=fetch)
        for phase, add in enumerate(
            (self._phase0, self._phase1, self._phase2, self._phase3, self._phase4, self._phase5)
        ):
            if phase in self.phases:
                add()

    # --- the phases

    def _begin(self, *, fetch: bool) -> None:
        first = min(self.phases)
        if fetch:
            self.steps.fetch_model(first)
        self.steps.calibrate(first)
        if self.needs_sensitivity:
            s = self.config.sensitivity
            params: dict[str, Any] = {"anchors": self.anchors, "methods": self.config.methods, "noise": s.noise}
            if s.fidelity is not None:
                params["fidelity"] = self.steps.config_fields(s.fidelity)
            self.steps.sensitivity("sensitivity", first, params, {})

    def _phase0(self) -> None:
        self.steps.gate("gate:0:sensitivity", 0, ["sensitivity_varies"], {"sensitivity": "sensitivity"})
        pilot = self.config.phase0
        if pilot is None:
            return
        uniform, high, low = (self.steps.config_fields(getattr(pilot, name)) for name in ("uniform", "high", "low"))
        self.steps.allocate(PHASE0_UNIFORM, 0, {"kind": "uniform", "uniform": uniform})
        manual = {"kind": "manual", "high": high, "low": low, "budget": {"uniform": uniform}}
        self.steps.allocate(PHASE0_MANUAL, 0, manual)
        for name in (PHASE0_UNIFORM, PHASE0_MANUAL):
            self.steps.compress(name, 0)
        self._evaluate_original(0)
        # which recipe to believe is a choice: it is made on text that the final report does not use
        dataset, first = self.datasets[0]
        text = self.config.text if first.split == "whole" else first.text
        for name in (PHASE0_UNIFORM, PHASE0_MANUAL):
            self.steps.evaluate(name, dataset, text, 0, split="select")
        context = {
            "uniform": f"evaluate:{PHASE0_UNIFORM}:{dataset}",
            "manual": f"evaluate:{PHASE0_MANUAL}:{dataset}",
            "recipe": f"allocate:{PHASE0_MANUAL}",
        }
        self.steps.gate("gate:0:manual", 0, ["manual_beats_uniform"], context)

    def _phase1(self) -> None:
        grid, baselines = self.config.grid, self.config.baselines.configs()
        configs = {c.config_hash: c.to_dict() for c in [*grid.configs(), *grid.rank0(), *baselines]}
        self.steps.sweep({"configs": list(configs.values()), "split": self.config.sweep.split})
        self.steps.gate("gate:1", 1, ["error_varies", "profiles_differ", "collection_complete"], {"sweep": "sweep"})

    def _phase2(self) -> None:
        grid = self.config.grid
        params: dict[str, Any] = {"form": self.config.fit.form, "codebook": grid.codebook}
        if grid.codebook == "trellis":  # errors of two sizes of trellis are no repetitions of each other
            params["states"] = grid.states
        self.steps.fit(params)
        self.steps.gate("gate:2", 2, ["fit_explains", "parameters_physical", "fit_generalises"], {"fit": "fit"})

    def _phase3(self) -> None:
        for position, budget in enumerate(self.budgets):
            choice = BudgetChoice(self.steps, position, budget, anchors=self.anchors, has_kl=self.needs_sensitivity)
            self.contenders.append(choice.contenders)
        context = {"optimal": f"allocate:{OPTIMAL}"}
        # with the optimal allocation alone: a baseline that does not fit decides nothing
        self.steps.gate("gate:3", 3, ["optimal_differs", "bytes_match", "allocator_fast"], context)

    def _phase4(self) -> None:
        if not self.steps.has("evaluate:original:" + self.datasets[0][0]):
            self._evaluate_original(4)
        self._contest(4, budgets=range(1), datasets=self.datasets[:1])
        context: dict[str, Any] = {
            **self._pair("", self.datasets[0][0]),
            "allocation": f"allocate:{OPTIMAL}",
            "compression": f"compress:{OPTIMAL}",
        }
        if 2 in self.phases:
            context["fit"] = "fit"
        # the bytes again, now that they lie on the disk
        gates = ["bytes_match", "optimal_beats_uniform", "downstream_preserved", "scaled_fit_explains"]
        if self.config.validation.enabled:
            gates.insert(1, "prediction_ranks")
            context["validations"] = {
                f"budget {position + 1}": f"validate:choice{budget_suffix(position)}"
                for position in range(len(self.budgets))
            }
        self.steps.gate("gate:4", 4, gates, context)

    def _phase5(self) -> None:
        self._contest(5, budgets=range(1), datasets=self.datasets[1:], compress=False)
        self._contest(5, budgets=range(1, len(self.budgets)), datasets=self.datasets)
        pairs = {}
        for position in range(len(self.budgets)):
            for dataset, _ in self.datasets:
                label = dataset + (f" at budget {position + 1}" if position else "")
                pairs[label] = self._pair(budget_suffix(position), dataset)
        self.steps.gate("gate:5", 5, ["optimal_beats_uniform", "consistent"], {"pairs": pairs})

    # --- their parts

    def _contest(
        self, phase: int, *, budgets: range, datasets: list[tuple[str, DatasetSpec]], compress: bool = True
    ) -> None:
        for position in budgets:
            names = [name + budget_suffix(position) for name in self.contenders[position]]
            for name in names if compress else []:
                self.steps.compress(name, phase)
            for dataset, text in datasets:
                for name in names:
                    self.steps.evaluate(name, dataset, text.text, phase, split=text.split)

    def _pair(self, suffix: str, dataset: str) -> dict[str, str]:
        """What the gates compare: best uniform, the optimum, and what the study keeps."""
        names = [UNIFORM, OPTIMAL] + ([CHOSEN] if self.config.validation.enabled else [])
        return {name: f"evaluate:{name}{suffix}:{dataset}" for name in names}

    def _evaluate_original(self, phase: int) -> None:
        for dataset, text in self.datasets:
            self.steps.evaluate("original", dataset, text.text, phase, split=text.split)
