"""The plan of a study as a pure function: which steps, what they take from each other, and at whose bytes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from results_db.params import PARAMS
from server.studies.plan import plan_study
from server.studies.schemas import StudyConfig
from server.studies.steps import FirstOf, Source, Step, conditional_steps

GRID = {"codebook": "e8", "b_q": [2, 3], "rank": [0, 8]}
PILOT = {"uniform": {"b_q": 2, "rank": 8}, "high": {"b_q": 3, "rank": 8}, "low": {"b_q": 2, "rank": 0}}


def plan(**fields: Any) -> dict[str, Step]:
    config = {"name": "x", "model": {"source": "m"}, "grid": GRID, "phase0": PILOT} | fields
    return {step.name: step for step in plan_study(StudyConfig.model_validate(config), "mod_1", fetch=False)}


def of_phase(steps: dict[str, Step], phase: int) -> list[str]:
    return [name for name, step in steps.items() if step.phase == phase]


def test_the_choice_in_the_order_in_which_it_is_made() -> None:
    assert of_phase(plan(baselines={"rtn": [2], "gptq": [2]}), 3) == [
        "allocate:uniforms",
        "validate:uniforms",
        "allocate:uniform",
        "allocate:optimal",
        "allocate:rank0",
        "allocate:manual",
        "allocate:rtn",
        "allocate:gptq",
        "allocate:random",
        "validate:choice",
        "sensitivity:reanchor",
        "allocate:reanchored",
        "validate:reanchored",
        "allocate:chosen",
        "gate:3",
    ]


def test_a_baseline_without_bits_does_not_compete() -> None:
    steps = plan(baselines={"rtn": [], "gptq": [2]})
    assert "allocate:gptq" in steps
    assert not [name for name in steps if "rtn" in name]


def test_every_parameter_is_one_that_its_job_takes() -> None:
    for step in plan(budgets=[{"fraction": 0.2}, {"bits_per_weight": 3}]).values():
        PARAMS[step.kind].model_validate(step.params | step.placeholders())


def test_steps_come_after_what_they_need() -> None:
    seen: set[str] = set()
    for name, step in plan(budgets=[{"bits_per_weight": 2.5}, {"bits_per_weight": 3}]).items():
        assert set(step.depends_on) <= seen, name
        seen.add(name)


@pytest.mark.parametrize("suffix", ["", "@2"])
def test_all_that_compete_have_the_bytes_of_the_best_uniform_config(suffix: str) -> None:
    steps = plan(budgets=[{"bits_per_weight": 2.5}, {"bits_per_weight": 3}])
    uniform = Source(f"allocate:uniform{suffix}", "allocation_id")
    for name in ("optimal", "rank0", "manual", "rtn", "random", "reanchored"):
        step = steps[f"allocate:{name}{suffix}"]
        assert step.inputs["budget_allocation_id"] == uniform, name
        assert step.params["budget"] == steps["allocate:uniforms" + suffix].params["budget"]
    assert steps["allocate:random" + suffix].params["count"] == 20


def test_the_best_uniform_config_is_chosen_by_held_out_loss() -> None:
    steps = plan()
    candidates = steps["allocate:uniforms"]
    assert (candidates.params["kind"], len(candidates.params["menu"])) == ("uniforms", 4)
    assert steps["validate:uniforms"].inputs["allocation_ids"] == [Source("allocate:uniforms", "allocation_ids")]
    best = steps["allocate:uniform"]
    assert (best.params["kind"], best.params["among"]) == ("winner", [])
    assert best.inputs["validation_id"] == Source("validate:uniforms", "validation_id")


def test_what_chooses_never_sees_the_report_split() -> None:
    steps = plan(validation={"windows": 12, "length": 128, "seed": 5})
    for name, step in steps.items():
        if name.startswith("validate:"):
            assert step.params["split"] == "select"
            assert step.params["windows"] == {"length": 128, "count": 12, "seed": 5}
    assert {steps[name].params["split"] for name in of_phase(steps, 4) if name.startswith("evaluate:")} == {"report"}
    chosen = [name for name in steps if name.startswith(("allocate:", "validate:", "sensitivity"))]
    assert not [name for name in chosen for need in steps[name].depends_on if need.startswith("evaluate:optimal")]


def test_rivals_without_a_fitting_config_are_missed_by_nobody() -> None:
    sources = plan()["validate:choice"].inputs["allocation_ids"]
    assert isinstance(sources, list)
    optional = {source.step.partition(":")[2]: source.optional for source in sources}
    assert optional == {"uniform": False, "optimal": False, "manual": True, "rank0": True, "random": True}
    assert next(source.key for source in sources if source.step == "allocate:random") == "allocation_ids"


def test_the_second_optimum_is_made_only_where_the_prediction_did_not_hold() -> None:
    steps = plan(budgets=[{"bits_per_weight": 2.5}, {"bits_per_weight": 3}])
    again = steps["sensitivity:reanchor@2"]
    assert again.inputs["only_if"] == Source("validate:choice@2", "reanchor")
    assert again.inputs["incumbent_allocation_id"] == Source("allocate:optimal@2", "allocation_id")
    assert again.params["methods"] == ["reanchored"]
    second = steps["allocate:reanchored@2"]
    assert second.params["objective"] == "reanchored"
    assert second.inputs["incumbent_allocation_id"].step == "sensitivity:reanchor@2"
    chosen = steps["allocate:chosen@2"]
    assert chosen.params["among"] == ["uniform@2", "optimal@2", "reanchored@2"]
    assert chosen.inputs["validation_id"] == FirstOf(
        (Source("validate:reanchored@2", "validation_id", optional=True), Source("validate:choice@2", "validation_id"))
    )


def test_only_the_second_optimum_may_turn_out_not_to_be_needed() -> None:
    assert conditional_steps(plan().values()) == {"sensitivity:reanchor", "allocate:reanchored", "validate:reanchored"}


def test_the_report_compares_all_of_them_once() -> None:
    steps = plan()
    evaluated = [name.split(":")[1] for name in of_phase(steps, 4) if name.startswith("evaluate:")]
    assert evaluated == ["uniform", "optimal", "rank0", "manual", "rtn", "chosen"]
    assert "evaluate:original:stdlib" in steps
    context = steps["gate:4"].context
    assert context["chosen"] == "evaluate:chosen:stdlib"
    assert context["validations"] == {"budget 1": "validate:choice"}
    assert "prediction_ranks" in steps["gate:4"].params["gates"]


def test_without_validation_the_objective_chooses_and_no_guard_speaks() -> None:
    steps = plan(validation={"enabled": False})
    assert of_phase(steps, 3) == [
        *("allocate:uniform", "allocate:optimal", "allocate:rank0", "allocate:manual", "allocate:rtn"),
        "gate:3",
    ]
    assert steps["allocate:uniform"].params["kind"] == "best_uniform"
    assert not [name for name in steps if name.startswith(("validate", "compress:chosen"))]
    assert "prediction_ranks" not in steps["gate:4"].params["gates"]


def test_less_can_be_validated() -> None:
    steps = plan(validation={"random": 0, "reanchor": False})
    assert not {"allocate:random", "allocate:reanchored", "sensitivity:reanchor"} & set(steps)
    assert not steps["validate:choice"].params.get("reanchor")
    assert steps["allocate:chosen"].params["among"] == ["uniform", "optimal"]


def test_random_allocations_can_be_left_to_the_first_budget() -> None:
    steps = plan(budgets=[{"bits_per_weight": 2.5}, {"bits_per_weight": 3}], validation={"random_budgets": 1})
    assert "allocate:random" in steps
    assert "allocate:random@2" not in steps
    assert "validate:choice@2" in steps


def test_no_manual_recipe_without_one_or_without_sensitivities() -> None:
    assert "allocate:manual" not in plan(phase0=None)
    assert "allocate:manual" not in plan(phases=[1, 2, 3], objective="error")
    assert "allocate:manual" in plan(phases=[1, 2, 3])


def test_sensitivities_are_measured_by_what_the_objective_needs() -> None:
    assert plan()["sensitivity"].params["methods"] == ["kl_anchor"]
    asked = plan(objective="higgs", sensitivity={"methods": ["fisher_output"], "fidelity": {"b_q": 2, "rank": 0}})
    assert asked["sensitivity"].params["methods"] == ["kl_anchor", "higgs", "fisher_output"]
    assert asked["sensitivity"].params["fidelity"]["codebook"] == "e8"
    assert asked["allocate:optimal"].params["objective"] == "higgs"


@pytest.mark.parametrize(
    ("b_q", "rank", "expected"),
    [
        ([2, 3, 4], [0, 8, 16], [(3, 0), (2, 16)]),
        ([4, 2, 3], [16, 8, 0, 4], [(3, 0), (2, 8)]),
        ([2], [64], [(2, 0), (2, 64)]),
        ([2, 3, 4], [0], [(2, 0), (4, 0)]),
        ([3], [0], [(3, 0)]),
    ],
)
def test_by_default_each_kind_of_config_has_an_anchor(
    b_q: list[int], rank: list[int], expected: list[tuple[int, int]]
) -> None:
    asked = plan(grid={"codebook": "e8", "b_q": b_q, "rank": rank}, phase0=None)["sensitivity"].params["anchors"]
    assert [(anchor["b_q"], anchor["rank"]) for anchor in asked] == expected


@pytest.mark.parametrize(
    "section",
    [
        {"validation": {"near": 3, "random": 2}},
        {"validation": {"windows": 1}},
        {"objective": "reanchored"},
        {"sensitivity": {"methods": ["reanchored"]}},
        {"sensitivity": {"fidelity": {"b_q": 99}}},
    ],
)
def test_what_makes_no_sense_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        plan(**section)
