"""Allocations as the API shows them, and the questions about allocations that none is stored for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from results_db.constraints import ConstraintSpec
from results_db.params import AllocateParams, BudgetSpec, ConfigFields, Objective
from results_db.tables import Allocation, AllocationItem
from server.kit.answers import page_model, row_model

AllocationRow = row_model(Allocation)
AllocationPage = page_model(AllocationRow)
_ITEMS: Any = list[row_model(AllocationItem)]  # type: ignore[misc]
AllocationDetail = row_model(Allocation, "AllocationDetail", items=_ITEMS)
#: the first of those that were made, and the ids of all: kinds random and uniforms make several
AllocationsMade = row_model(Allocation, "AllocationsMade", items=_ITEMS, allocation_ids=list[str])

_MODEL = "model_0192f3a4b5c9f1e2d3c4b5a"
_CONFIG: dict[str, Any] = {"b_q": 3, "rank": 64}


class ProblemRequest(BaseModel):
    """What is allocated over: as for POST /api/v1/allocations, kind optimal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_id: str
    calibration_id: str | None = None
    objective: Objective = "kl"
    #: of objective reanchored: the allocation that the sensitivities were measured at; null = the newest measured
    incumbent_allocation_id: str | None = None
    scope: Literal["decoder", "model"] = "decoder"
    #: configs to choose from; null = everything measured under the calibration except the baselines rtn and gptq
    menu: list[ConfigFields] | None = None
    constraints: ConstraintSpec | None = None

    def params(self) -> AllocateParams:
        """The same question as the allocation that would answer it."""
        known = {name: getattr(self, name) for name in type(self).model_fields if name in AllocateParams.model_fields}
        return AllocateParams(name="what-if", kind="optimal", **known)


class FrontierRequest(ProblemRequest):
    """Every supported point, or so many of them."""

    #: at most so many points, spread evenly over the bytes; null = all
    points: Annotated[int, Field(ge=2, le=100_000)] | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [{"model_id": _MODEL, "points": 100}]})


class FrontierPoint(BaseModel):
    """An allocation that is optimal at exactly its bytes."""

    matrix_bytes: int
    #: in the scope
    total_bytes: int
    bits_per_weight: float
    objective_value: float
    #: objective saved per byte in reaching the point; null for the smallest
    shadow_price: float | None


class UniformPoint(BaseModel):
    """One config everywhere."""

    config: dict[str, Any]
    matrix_bytes: int
    total_bytes: int
    bits_per_weight: float
    objective_value: float
    #: no allocation of no more bytes is below it; null where constraints leave nothing so small
    lower_bound: float | None


class FrontierAnswer(BaseModel):
    """The lower hull of objective over bytes, with the uniform configs beside it."""

    objective: str
    scope: str
    #: of the matrices before compression
    original_matrix_bytes: int
    #: every other stored byte
    fixed_bytes: int
    #: before thinning
    n_points: int
    points: list[FrontierPoint]
    uniform: list[UniformPoint]


class PinQuestion(BaseModel):
    """What if this matrix had this config?"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    matrix: Annotated[str, Field(examples=["3.down", "3.down.7"], max_length=100)]
    config: Annotated[ConfigFields, Field(examples=[_CONFIG])]


class WhatIfRequest(ProblemRequest):
    """Questions about the optimum at a budget; each is answered by solving again."""

    budget: BudgetSpec | None = None
    #: an allocation that must not be exceeded either
    budget_allocation_id: str | None = None
    pins: Annotated[list[PinQuestion], Field(max_length=32)] = []
    #: more bytes, or fewer where negative
    more_bytes: Annotated[list[Annotated[int, Field(ge=-(10**15), le=10**15)]], Field(max_length=32)] = [1_000_000]
    #: matrices whose exact regret is asked: what it costs that they do not get their config
    regrets: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=32)] = []
    #: whether the best allocation that differs is asked for
    second_best: bool = True

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model_id": _MODEL,
                    "budget": {"uniform": _CONFIG},
                    "pins": [{"matrix": "0.down", "config": {"b_q": 4, "rank": 64}}],
                    "more_bytes": [1_000_000],
                }
            ]
        }
    )


class Price(BaseModel):
    """The answer to one question, beside the optimum without it."""

    #: whether anything fits the budget; where not, only smallest_bytes is said
    feasible: bool
    #: of the objective: what it costs (negative: what it saves)
    difference: float | None = None
    #: the true difference of the two optima lies between these
    at_least: float | None = None
    at_most: float | None = None
    #: both are proven optimal
    proven: bool | None = None
    objective_value: float | None = None
    matrix_bytes: int | None = None
    #: of the matrices, above the optimum's
    extra_bytes: int | None = None
    #: matrices whose config is another
    changed: list[str] | None = None
    #: that the question would need, in the scope
    smallest_bytes: int | None = None


class PinPrice(Price):
    matrix: str
    config: dict[str, Any]


class BytesPrice(Price):
    bytes: int


class RegretPrice(Price):
    matrix: str


class WhatIfAnswer(BaseModel):
    """Prices beside the optimum."""

    objective: str
    scope: str
    budget_bytes: int
    objective_value: float
    lower_bound: float
    optimal: bool
    matrix_bytes: int
    total_bytes: int
    #: objective units per byte, and per 10⁶ bytes
    shadow_price: float
    shadow_price_per_mb: float
    pins: list[PinPrice]
    more_bytes: list[BytesPrice]
    regrets: list[RegretPrice]
    #: null where it was not asked for, or nothing else fits
    second_best: Price | None
