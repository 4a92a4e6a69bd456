"""Specs: valid by Altair's schema, true to their rows."""

from __future__ import annotations

import json
import math
from typing import Any

import altair as alt
import pytest

from web.figures import (
    Agreement,
    AnchorResult,
    Cell,
    ChosenConfig,
    Estimated,
    Figure,
    FittedCell,
    FittedForm,
    FrontierPoint,
    LayerFidelity,
    LayerGroups,
    Outcome,
    Validated,
    allocation_figure,
    errors_figure,
    estimates_figure,
    fidelity_figure,
    fit_figure,
    forms_figure,
    frontier_figure,
    outcome_figure,
    prediction_figure,
    sensitivity_figure,
)
from web.figures.base import VEGA_LITE_MAJOR, geometric_mean

CELLS = [
    Cell(
        layer, projection, -1, config, None if (layer, config) == (1, "e8 3b r8 f4") else 0.01 * (layer + 1), 2.1, 1000
    )
    for projection in ("q", "down")
    for layer in (0, 1)
    for config in ("e8 2b r0", "e8 3b r8 f4")
]
ANCHORS = [
    AnchorResult(layer, "q", -1, anchor, None if layer == 2 else 0.1, 0.01, None if layer == 2 else value)
    for layer in (0, 1, 2)
    for anchor, value in (("coarse", 2.0 + layer), ("fine", 8.0 + layer))
]
CHOSEN = [
    ChosenConfig(name, layer, "q", -1, config, 2, rank, 900, 2.4)
    for layer in (0, 1)
    for name, config, rank in (("best uniform", "e8 2b r8 f4", 8), ("optimal", "e8 2b r32 f4", 32))
]
OUTCOMES = [
    Outcome("original", "stdlib", "original", 10_860_000, None, 9.62, 9.2, 10.0, 64),
    Outcome("optimal", "stdlib", "optimal", 3_439_872, 2.31, 12.31, 11.8, 12.8, 64),
    Outcome("best uniform", "stdlib", "uniform", 3_440_128, 2.31, 13.04, 12.5, 13.6, 64),
]
FITTED = [FittedCell(i, "q", -1, 2, 8, 0.01 * (i + 1), 0.011 * (i + 1)) for i in range(4)]
VALIDATED = [
    Validated(budget, name, role, 1000, predicted, 1.2 * predicted, 0.01, 12.0)
    for budget in ("budget 1", "budget 2")
    for name, role, predicted in (
        ("optimal", "optimal", 0.1),
        ("uniform", "uniform", 0.2),
        ("random-01", "random", 0.3),
    )
]
AGREEMENTS = [Agreement("budget 1", 64, 0.97, 0.9, 0.99, 1.1, 1.2, True), Agreement("budget 2", 64, *[None] * 6)]
FRONTIER = [
    FrontierPoint("optimal", "optimal", 3000, 2.4, 0.1),
    FrontierPoint("e8 2b r0", "uniform", 3000, 2.4, 0.15),
    *(FrontierPoint("frontier", "frontier", 2000 + 100 * i, 2 + i / 10, 0.3 / (i + 1)) for i in range(5)),
]
ESTIMATED = [
    Estimated(layer, projection, -1, method, value, 0.5 * value, 2 * value, value, 0.8)
    for method, value in (("kl_anchor", 0.2), ("higgs", 5.0))
    for projection in ("q", "down")
    for layer in (0, 1)
]
FORMS = [
    FittedForm("additive", False, "worse by more than its error", 0.2, 0.3, 0.9, 0.95, 0.99, (0.9, 0.8, 0.9, 0.7), 36),
    FittedForm("log_linear", True, "the least error", 0.1, 0.2, 0.95, 0.97, 0.99, (0.9, 0.8, 0.9, 0.7), 36),
    FittedForm("multiplicative", False, "not fitted: too few ranks"),
]
FIDELITY = [LayerFidelity(layer, "e8 2b r0", 0.99 - 0.01 * layer, 0.001, 0.02 + 0.01 * layer, None) for layer in (0, 1)]

FIGURES = [
    errors_figure(CELLS),
    errors_figure(CELLS, [LayerGroups("level_and_shape", ((0,), (1,)), "the gap says so")]),
    prediction_figure(VALIDATED, AGREEMENTS),
    prediction_figure(VALIDATED[:3], AGREEMENTS[:1]),
    frontier_figure(FRONTIER, unit="nats of KL a token"),
    estimates_figure(ESTIMATED),
    estimates_figure(ESTIMATED[:4]),
    forms_figure(FORMS),
    fidelity_figure(FIDELITY),
    sensitivity_figure(ANCHORS),
    allocation_figure(CHOSEN),
    outcome_figure(OUTCOMES),
    fit_figure(FITTED, form="additive", r2=0.93, cv_error=0.08),
]


def _values(figure: Figure) -> list[dict[str, Any]]:
    assert figure.spec is not None
    values: list[dict[str, Any]] = figure.spec["data"]["values"]
    return values


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.name)
def test_spec_is_valid_vega_lite(figure: Figure) -> None:
    assert alt.Chart.from_dict(figure.spec, validate=True).to_dict()["$schema"] == figure.spec["$schema"]


def test_schema_is_the_major_that_altair_and_the_bundle_know() -> None:
    assert alt.SCHEMA_VERSION.lstrip("v").split(".")[0] == str(VEGA_LITE_MAJOR)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.name)
def test_figure_carries_words_and_a_table(figure: Figure) -> None:
    assert len(figure.alt) > 40
    assert figure.caption
    assert figure.table.rows
    assert all(len(row) == len(figure.table.columns) for row in figure.table.rows)
    assert figure.spec is not None
    assert figure.spec["description"] == figure.alt
    assert "url" not in figure.spec["data"]


@pytest.mark.parametrize(
    "figure",
    [
        errors_figure([]),
        sensitivity_figure([]),
        allocation_figure([]),
        outcome_figure([]),
        fit_figure([]),
        prediction_figure([], []),
        frontier_figure([]),
        estimates_figure([]),
        forms_figure([]),
        fidelity_figure([]),
    ],
    ids=lambda f: f.name,
)
def test_figure_without_rows_says_so(figure: Figure) -> None:
    assert figure.spec is None
    assert "yet" in figure.caption
    assert figure.table.columns


def test_errors_name_missing_cells() -> None:
    figure = errors_figure(CELLS)
    assert [v["status"] for v in _values(figure)].count("not measured") == 2
    assert "2 of 8 cells are hatched" in figure.caption
    assert len(figure.spec["spec"]["layer"]) == 2  # type: ignore[index]
    # projection, layer, and one column a config
    assert figure.table.rows[1] == ("q", "1", 0.02, None)


def test_errors_without_a_hole_have_no_hatch() -> None:
    figure = errors_figure([cell for cell in CELLS if cell.error])
    assert figure.spec is not None
    assert len(figure.spec["spec"]["layer"]) == 1
    assert "hatched" not in figure.caption


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_errors_that_a_log_scale_cannot_show_are_not_measured(bad: float) -> None:
    figure = errors_figure([Cell(0, "q", -1, "a", bad), Cell(0, "q", -1, "b", 0.5)])
    assert [v["error"] for v in _values(figure)] == [None, 0.5]


def test_sensitivity_is_the_geometric_mean_of_the_anchors() -> None:
    values = _values(sensitivity_figure(ANCHORS))
    assert values[0]["sensitivity"] == pytest.approx(4.0)
    assert values[2]["status"] == "not measured"
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([1.0, 0.0]) is None
    assert geometric_mean([]) is None


def test_sensitivity_names_the_extremes() -> None:
    assert "1.q is the most sensitive matrix, 0.q the least" in sensitivity_figure(ANCHORS).caption


def test_allocation_counts_configs() -> None:
    figure = allocation_figure(CHOSEN)
    assert "best uniform: 2 × e8 2b r8 f4; optimal: 2 × e8 2b r32 f4" in figure.alt


def test_allocation_drops_words_from_small_cells() -> None:
    many = [ChosenConfig("optimal", i, "q", -1, "e8 2b r0", 2, 0, 900, 2.0) for i in range(80)]
    figure = allocation_figure(many)
    assert figure.spec is not None
    assert len(figure.spec["spec"]["layer"]) == 1


def test_outcome_names_datasets_only_where_there_are_several() -> None:
    assert _values(outcome_figure(OUTCOMES))[0]["model"] == "original"
    more = [*OUTCOMES, Outcome("optimal", "c4", "optimal", 1, 2.0, 9.0, 8.0, 10.0, 8)]
    assert _values(outcome_figure(more))[0]["model"] == "original · stdlib"


def test_fit_counts_what_it_cannot_draw() -> None:
    figure = fit_figure([*FITTED, FittedCell(9, "q", -1, 2, 8, 0.0, 0.1)], form="additive", r2=0.9)
    assert len(_values(figure)) == 4
    assert "1 cells are not drawn" in figure.caption
    assert len(figure.table.rows) == 5


def test_experts_have_rows_of_their_own() -> None:
    figure = errors_figure([Cell(0, "gate", e, "a", 0.1 + e) for e in (0, 1)])
    assert [v["layer"] for v in _values(figure)] == ["0·0", "0·1"]


def test_a_prediction_is_drawn_with_its_line_and_judged_in_words() -> None:
    figure = prediction_figure(VALIDATED, AGREEMENTS)
    assert "budget 1: rank correlation 0.970 [0.900, 0.990], slope 1.10" in figure.caption
    assert "the prediction holds" in figure.caption
    assert "budget 2: too few allocations" in figure.caption
    assert {value["role"] for value in _values(figure)} == {"optimal", "uniform", "random"}
    assert len(figure.table.rows) == 6


def test_a_prediction_has_labels_over_its_whole_range() -> None:
    values = (0.008, 0.03, 0.09)
    items = [Validated("equal bytes", "random", "random", 1000, v, v, v / 50, 12.0) for v in values]
    spec = json.dumps(prediction_figure(items, []).spec)
    assert '"values": [0.01, 0.02, 0.05, 0.1]' in spec


def test_what_is_not_predicted_is_in_the_table_alone() -> None:
    bare = [Validated("equal bytes", "optimal", "optimal", 1000, None, 0.1, 0.01, 12.0)]
    figure = prediction_figure(bare, [])
    assert figure.spec is None
    assert "no KL sensitivities" in figure.caption
    assert figure.table.rows[0][3] is None


def test_several_methods_are_drawn_over_their_own_means() -> None:
    both, one = estimates_figure(ESTIMATED), estimates_figure(ESTIMATED[:4])
    assert [value["drawn"] for value in _values(both)] == pytest.approx([1.0] * 8)
    assert {value["drawn"] for value in _values(one)} == {0.2}
    assert "within a factor of 2.00" in one.caption
    assert both.spec["spec"]["layer"][1]["encoding"]["color"]["legend"]["values"] == ["KL anchors", "noise (HIGGS)"]  # type: ignore[index]


def test_forms_that_could_not_be_fitted_say_why() -> None:
    figure = forms_figure(FORMS)
    assert "Chosen: log-linear (the least error)" in figure.caption
    assert figure.table.rows[2][-1] == "not fitted: too few ranks"
    assert len(_values(figure)) == 4


def test_groups_of_layers_stand_beside_the_rows() -> None:
    found = LayerGroups("level_and_shape", ((0, 1, 2), (3, 5)), "the gap says so.")
    assert found.sentence() == (
        "Layers fall into 2 groups by level and shape of their errors: A: 0–2; B: 3, 5 (the gap says so)."
    )
    assert LayerGroups("shape", ((0, 1),), "noise").sentence() == "Layers fall into no groups by shape alone (noise)."
    grouped = errors_figure(CELLS, [LayerGroups("level_and_shape", ((0,), (1,)), "")])
    assert {value["layer"] for value in _values(grouped)} == {"A 0", "B 1"}
    assert {value["layer"] for value in _values(errors_figure(CELLS))} == {"0", "1"}
