"""From a StudyConfig to the tree of its jobs: a pure function, steps in the order in which people read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compress_core.config import BASELINE_CODEBOOKS, CompressionConfig
from results_db.params import BudgetSpec, DatasetSpec, TextSpec
from results_db.states import JobKind
from server.studies.schemas import StudyConfig

#: an input of a job: (step that it comes from, key in that step's result)
Input = tuple[str, str]

OPTIMAL, UNIFORM, RANK0 = "optimal", "uniform", "rank0"
#: allocations that optimal is compared with besides uniform; a baseline is named after its codebook
RIVALS = (RANK0, *BASELINE_CODEBOOKS)
PHASE0_UNIFORM, PHASE0_MANUAL = "phase0-uniform", "phase0-manual"


@dataclass(frozen=True, slots=True)
class Step:
    """One job of a study."""

    name: str
    kind: JobKind
    phase: int
    params: dict[str, Any]
    #: parameters taken from the results of steps that it depends on
    inputs: dict[str, Input] = field(default_factory=dict)
    #: steps that must end first, besides those of ``inputs``
    after: tuple[str, ...] = ()
    #: a gate runs whatever became of the steps before it
    run_when: str = "succeeded"
    #: gates only: names of steps whose jobs it looks at
    context: dict[str, Any] = field(default_factory=dict)

    @property
    def depends_on(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.after, *(step for step, _ in self.inputs.values())]))


def budget_suffix(position: int) -> str:
    """ "" for the first budget, "@2" for the second."""
    return "" if position == 0 else f"@{position + 1}"


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
    """The anchors given, or the grid's leanest and richest configs."""
    grid = config.grid
    given = config.sensitivity.anchors or [
        {"b_q": min(grid.b_q), "rank": min(grid.rank)},
        {"b_q": max(grid.b_q), "rank": max(grid.rank)},
    ]
    return list({c.config_hash: c for c in map(grid.complete, given)}.values())


def plan_study(config: StudyConfig, model_id: str, *, fetch: bool) -> list[Step]:
    """All steps; ``fetch`` puts the download of a hub model first."""
    return _Planner(config, model_id, fetch=fetch).steps


class _Planner:
    """Collects steps phase by phase; each phase waits for the gate of the one before."""

    def __init__(self, config: StudyConfig, model_id: str, *, fetch: bool) -> None:
        self.config = config
        self.model_id = model_id
        self.fetch = fetch
        self.phases = set(config.phases)
        self.datasets = list(zip(dataset_names(config), config.datasets, strict=True))
        self.budgets = resolved_budgets(config)
        self.steps: list[Step] = []
        #: the last gate: what comes later waits for it
        self.gate: tuple[str, ...] = ()
        self.needs_sensitivity = 0 in self.phases or (3 in self.phases and config.objective == "kl")
        self._begin()
        if 0 in self.phases:
            self._phase0()
        if 1 in self.phases:
            self._phase1()
        if 2 in self.phases:
            self._phase2()
        if 3 in self.phases:
            self._phase3()
        if 4 in self.phases:
            self._phase4()
        if 5 in self.phases:
            self._phase5()

    # --- the phases

    def _begin(self) -> None:
        first = min(self.phases)
        if self.fetch:
            self._add("fetch", JobKind.FETCH, first, {"model_id": self.model_id})
        c = self.config.calibration
        windows = {"length": c.length, "count": c.samples, "seed": c.seed}
        how = {"text": self._text(self.config.text), "windows": windows, "dtype": c.dtype, "keep": c.keep}
        self._job("calibrate", JobKind.CALIBRATE, first, how)
        if self.needs_sensitivity:
            s = self.config.sensitivity
            self._job(
                "sensitivity",
                JobKind.SENSITIVITY,
                first,
                {
                    "anchors": [anchor.to_dict() for anchor in anchors(self.config)],
                    "text": self._text(self.config.text),
                    "windows": {"length": s.length, "count": s.samples, "seed": s.seed},
                },
                {"calibration_id": ("calibrate", "calibration_id")},
            )

    def _phase0(self) -> None:
        self._gate("gate:0:sensitivity", 0, ["sensitivity_varies"], {"sensitivity": "sensitivity"})
        pilot = self.config.phase0
        if pilot is None:
            return
        uniform, high, low = (self._config(getattr(pilot, name)) for name in ("uniform", "high", "low"))
        self._allocate(PHASE0_UNIFORM, 0, {"kind": "uniform", "uniform": uniform})
        manual = {"kind": "manual", "high": high, "low": low, "budget": {"uniform": uniform}}
        self._allocate(PHASE0_MANUAL, 0, manual)
        for name in (PHASE0_UNIFORM, PHASE0_MANUAL):
            self._compress(name, 0)
        self._evaluate_original(0)
        # which recipe to believe is a choice: it is made on text that the final report does not use
        dataset, first = self.datasets[0]
        text = self.config.text if first.split == "whole" else first.text
        for name in (PHASE0_UNIFORM, PHASE0_MANUAL):
            self._evaluate(name, dataset, text, 0, split="select")
        context = {
            "uniform": f"evaluate:{PHASE0_UNIFORM}:{dataset}",
            "manual": f"evaluate:{PHASE0_MANUAL}:{dataset}",
            "recipe": f"allocate:{PHASE0_MANUAL}",
        }
        self._gate("gate:0:manual", 0, ["manual_beats_uniform"], context)

    def _phase1(self) -> None:
        grid, baselines = self.config.grid, self.config.baselines.configs()
        configs = {c.config_hash: c.to_dict() for c in [*grid.configs(), *grid.rank0(), *baselines]}
        self._job(
            "sweep",
            JobKind.SWEEP,
            1,
            {"configs": list(configs.values()), "split": self.config.sweep.split},
            {"calibration_id": ("calibrate", "calibration_id")},
        )
        self._gate("gate:1", 1, ["error_varies", "profiles_differ", "collection_complete"], {"sweep": "sweep"})

    def _phase2(self) -> None:
        grid = self.config.grid
        params: dict[str, Any] = {"form": self.config.fit.form, "codebook": grid.codebook}
        if grid.codebook == "trellis":  # errors of two sizes of trellis are no repetitions of each other
            params["states"] = grid.states
        self._job("fit", JobKind.FIT, 2, params, {"calibration_id": ("calibrate", "calibration_id")}, after=("sweep",))
        self._gate("gate:2", 2, ["fit_explains", "parameters_physical", "fit_generalises"], {"fit": "fit"})

    def _phase3(self) -> None:
        grid = [c.to_dict() for c in self.config.grid.configs()]
        menus: dict[str, tuple[str, list[dict[str, Any]]]] = {
            UNIFORM: ("best_uniform", grid),
            OPTIMAL: ("optimal", grid),
            RANK0: ("optimal", [c.to_dict() for c in self.config.grid.rank0()]),
        }
        for name, configs in self.config.baselines.menus().items():
            menus[name] = ("optimal", [c.to_dict() for c in configs])
        self.names = tuple(menus)
        for position, budget in enumerate(self.budgets):
            for name, (kind, menu) in menus.items():
                params = {
                    "kind": kind,
                    "objective": self.config.objective,
                    "budget": budget.model_dump(exclude_none=True),
                    "menu": menu,
                }
                # equal bytes: nobody may take more than the best uniform config that fits
                rival = None if name == UNIFORM else f"allocate:{UNIFORM}{budget_suffix(position)}"
                self._allocate(name + budget_suffix(position), 3, params, rival=rival)
        context = {"optimal": f"allocate:{OPTIMAL}"}
        # with the optimal allocation alone: a baseline that does not fit decides nothing
        self._gate("gate:3", 3, ["optimal_differs", "bytes_match", "allocator_fast"], context)

    def _phase4(self) -> None:
        if not self._has("evaluate:original:" + self.datasets[0][0]):
            self._evaluate_original(4)
        self._contest(4, budgets=range(1), datasets=self.datasets[:1])
        dataset = self.datasets[0][0]
        context = {
            "uniform": f"evaluate:{UNIFORM}:{dataset}",
            "optimal": f"evaluate:{OPTIMAL}:{dataset}",
            "allocation": f"allocate:{OPTIMAL}",
            "compression": f"compress:{OPTIMAL}",
        } | ({"fit": "fit"} if 2 in self.phases else {})
        # the bytes again, now that they lie on the disk
        gates = ["bytes_match", "optimal_beats_uniform", "downstream_preserved", "scaled_fit_explains"]
        self._gate("gate:4", 4, gates, context)

    def _phase5(self) -> None:
        self._contest(5, budgets=range(1), datasets=self.datasets[1:], compress=False)
        self._contest(5, budgets=range(1, len(self.budgets)), datasets=self.datasets)
        pairs = {}
        for position in range(len(self.budgets)):
            suffix = budget_suffix(position)
            for dataset, _ in self.datasets:
                label = dataset + (f" at budget {position + 1}" if position else "")
                pairs[label] = {
                    "uniform": f"evaluate:{UNIFORM}{suffix}:{dataset}",
                    "optimal": f"evaluate:{OPTIMAL}{suffix}:{dataset}",
                }
        self._gate("gate:5", 5, ["optimal_beats_uniform", "consistent"], {"pairs": pairs})

    # --- their parts

    def _contest(
        self, phase: int, *, budgets: range, datasets: list[tuple[str, DatasetSpec]], compress: bool = True
    ) -> None:
        for position in budgets:
            names = [name + budget_suffix(position) for name in self.names]
            for name in names if compress else []:
                self._compress(name, phase)
            for dataset, text in datasets:
                for name in names:
                    self._evaluate(name, dataset, text.text, phase, split=text.split)

    def _allocate(self, name: str, phase: int, params: dict[str, Any], *, rival: str | None = None) -> None:
        inputs = {} if params["kind"] == "uniform" else {"calibration_id": ("calibrate", "calibration_id")}
        if rival is not None:
            inputs["budget_allocation_id"] = (rival, "allocation_id")
        after = [step for step in ("sweep", "sensitivity") if self._has(step)]
        shared = {"name": name, "scope": self.config.scope}
        self._job(f"allocate:{name}", JobKind.ALLOCATE, phase, shared | params, inputs, after=tuple(after))

    def _compress(self, name: str, phase: int) -> None:
        inputs = {
            "calibration_id": ("calibrate", "calibration_id"),
            "allocation_id": (f"allocate:{name}", "allocation_id"),
        }
        self._job(f"compress:{name}", JobKind.COMPRESS, phase, {}, inputs)

    def _evaluate_original(self, phase: int) -> None:
        for dataset, text in self.datasets:
            self._evaluate("original", dataset, text.text, phase, split=text.split)

    def _evaluate(self, name: str, dataset: str, text: TextSpec, phase: int, *, split: str) -> None:
        e = self.config.evaluation
        params = {
            "task": "perplexity",
            "text": self._text(text),
            "split": split,
            "windows": {"length": e.length, "count": e.windows, "seed": e.seed},
        }
        inputs: dict[str, Input] = {}
        if name != "original":
            inputs["compression_id"] = (f"compress:{name}", "compression_id")
        self._job(f"evaluate:{name}:{dataset}", JobKind.EVALUATE, phase, params, inputs)

    def _gate(self, name: str, phase: int, gates: list[str], context: dict[str, Any]) -> None:
        looked_at = tuple(dict.fromkeys(_leaves(context)))
        self._add(
            name,
            JobKind.GATE,
            phase,
            {"phase": phase, "gates": gates},
            after=(*self.gate, *looked_at),
            run_when="finished",
            context=context,
        )
        self.gate = (name,)

    def _job(
        self,
        name: str,
        kind: JobKind,
        phase: int,
        params: dict[str, Any],
        inputs: dict[str, Input] | None = None,
        *,
        after: tuple[str, ...] = (),
    ) -> None:
        """A step that works on the model."""
        inputs = dict(inputs or {})
        params = dict(params)
        if self.fetch:
            # fetching may find that the same weights are known as another model
            inputs["model_id"] = ("fetch", "model_id")
        else:
            params["model_id"] = self.model_id
        self._add(name, kind, phase, params, inputs, after=(*self.gate, *after))

    def _add(
        self,
        name: str,
        kind: JobKind,
        phase: int,
        params: dict[str, Any],
        inputs: dict[str, Input] | None = None,
        *,
        after: tuple[str, ...] = (),
        run_when: str = "succeeded",
        context: dict[str, Any] | None = None,
    ) -> None:
        self.steps.append(Step(name, kind, phase, params, inputs or {}, after, run_when, context or {}))

    def _has(self, name: str) -> bool:
        return any(step.name == name for step in self.steps)

    def _config(self, fields: dict[str, Any]) -> dict[str, Any]:
        return self.config.grid.complete(fields).to_dict()

    def _text(self, text: TextSpec) -> dict[str, Any]:
        return text.model_dump()


def _leaves(context: dict[str, Any]) -> list[str]:
    """Every step that a gate's context names."""
    return [leaf for value in context.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]
