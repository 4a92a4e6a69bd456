"""Phase 3 at one budget: the candidates, their check on held-out text, the second optimum, and what is kept."""

from __future__ import annotations

from typing import Any

from results_db.params import BudgetSpec
from results_db.queue.inputs import ONLY_IF
from server.studies.builder import StudySteps
from server.studies.steps import (
    CHOSEN,
    MANUAL,
    OPTIMAL,
    RANDOM,
    RANK0,
    REANCHORED,
    UNIFORM,
    UNIFORMS,
    FirstOf,
    Input,
    Source,
    budget_suffix,
)

_PHASE = 3


class BudgetChoice:
    """Adds the steps that choose allocations at one budget.

    The best uniform config comes first: on held-out text where the study validates, by the objective otherwise. All
    others may take its bytes and no more, so that everything at this budget is compared at equal bytes.
    """

    def __init__(
        self, steps: StudySteps, position: int, budget: BudgetSpec, *, anchors: list[dict[str, Any]], has_kl: bool
    ) -> None:
        config = steps.config
        self._steps = steps
        self._config = config
        self._validation = v = config.validation
        self._n_random = v.random if v.random_budgets is None or position < v.random_budgets else 0
        self._suffix = budget_suffix(position)
        self._anchors = anchors
        self._grid = [c.to_dict() for c in config.grid.configs()]
        self._budget = {"objective": config.objective, "budget": budget.model_dump(exclude_none=True)}
        #: names, without the budget, of what is compressed and evaluated
        self.contenders: list[str] = []
        self._uniform()
        self._contender(OPTIMAL, {"kind": "optimal", "menu": self._grid})
        self._contender(RANK0, {"kind": "optimal", "menu": [c.to_dict() for c in config.grid.rank0()]})
        if config.phase0 is not None and has_kl:
            high, low = (steps.config_fields(fields) for fields in (config.phase0.high, config.phase0.low))
            self._contender(MANUAL, {"kind": "manual", "high": high, "low": low})
        for name, configs in config.baselines.menus().items():
            self._contender(name, {"kind": "optimal", "menu": [c.to_dict() for c in configs]})
        if self._validation.enabled:
            self._random()
            self._validate_choice()
            self._reanchor()
            self._keep()

    def _uniform(self) -> None:
        if self._validation.enabled:
            ask = {"kind": "uniforms", "menu": self._grid, "count": self._validation.uniforms}
            self._allocate(UNIFORMS, ask)
            self._validate(UNIFORMS, [Source(self._step("allocate", UNIFORMS), "allocation_ids")])
            self._winner(UNIFORM, Source(self._step("validate", UNIFORMS), "validation_id"), among=[])
        else:
            self._allocate(UNIFORM, {"kind": "best_uniform", "menu": self._grid})
        self.contenders.append(UNIFORM)

    def _contender(self, name: str, ask: dict[str, Any]) -> None:
        self._allocate(name, ask, equal_bytes=True)
        self.contenders.append(name)

    def _random(self) -> None:
        v = self._validation
        if self._n_random:
            ask = {"kind": "random", "menu": self._grid, "count": v.random, "near": v.near, "seed": v.seed}
            self._allocate(RANDOM, ask, equal_bytes=True)

    def _validate_choice(self) -> None:
        others = [name for name in (MANUAL, RANK0) if name in self.contenders]
        sources = [
            *(Source(self._step("allocate", name), "allocation_id") for name in (UNIFORM, OPTIMAL)),
            # a rival that has nothing within the budget is missed by nobody
            *(Source(self._step("allocate", name), "allocation_id", optional=True) for name in others),
        ]
        if self._n_random:
            sources.append(Source(self._step("allocate", RANDOM), "allocation_ids", optional=True))
        self._validate("choice", sources, reanchor=self._validation.reanchor)

    def _reanchor(self) -> None:
        """A second optimum, from sensitivities measured at the first one; only where the prediction did not hold."""
        if not self._validation.reanchor:
            return
        incumbent = Source(self._step("allocate", OPTIMAL), "allocation_id")
        self._steps.sensitivity(
            "sensitivity:reanchor" + self._suffix,
            _PHASE,
            {"anchors": self._anchors, "methods": ["reanchored"]},
            {ONLY_IF: Source(self._step("validate", "choice"), "reanchor"), "incumbent_allocation_id": incumbent},
        )
        ask = {"kind": "optimal", "menu": self._grid, "objective": "reanchored"}
        measured = Source("sensitivity:reanchor" + self._suffix, "incumbent_allocation_id")
        self._allocate(REANCHORED, ask, equal_bytes=True, inputs={"incumbent_allocation_id": measured})
        self._validate(
            REANCHORED,
            [Source(self._step("allocate", name), "allocation_id") for name in (UNIFORM, OPTIMAL, REANCHORED)],
        )

    def _keep(self) -> None:
        names = [UNIFORM, OPTIMAL]
        checks = [Source(self._step("validate", "choice"), "validation_id")]
        if self._validation.reanchor:
            names.append(REANCHORED)
            checks.insert(0, Source(self._step("validate", REANCHORED), "validation_id", optional=True))
        self._winner(CHOSEN, FirstOf(tuple(checks)), among=[name + self._suffix for name in names])
        self.contenders.append(CHOSEN)

    # --- their parts

    def _step(self, kind: str, name: str) -> str:
        return f"{kind}:{name}{self._suffix}"

    def _allocate(
        self,
        name: str,
        ask: dict[str, Any],
        *,
        equal_bytes: bool = False,
        inputs: dict[str, Input] | None = None,
    ) -> None:
        inputs = dict(inputs or {})
        if equal_bytes:
            inputs["budget_allocation_id"] = Source(self._step("allocate", UNIFORM), "allocation_id")
        self._steps.allocate(name + self._suffix, _PHASE, self._budget | ask, inputs)

    def _winner(self, name: str, validation: Input, *, among: list[str]) -> None:
        ask = {"kind": "winner", "among": among, "objective": self._config.objective}
        self._steps.allocate(name + self._suffix, _PHASE, ask, {"validation_id": validation})

    def _validate(self, name: str, allocations: list[Source], **params: Any) -> None:
        inputs: dict[str, Input] = {"allocation_ids": allocations}
        if params.get("reanchor"):
            inputs["incumbent"] = Source(self._step("allocate", OPTIMAL), "allocation_id")
        self._steps.validate(name + self._suffix, _PHASE, params, inputs)
