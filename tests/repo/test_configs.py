"""Every file in configs/ is a study that the server accepts, and says what the plan says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.errors import CliError
from cli.study_file import load_study
from server.studies.plan import plan_study
from server.studies.schemas import StudyConfig

REPO = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPO / "configs").glob("*.yaml"))
#: stands for a commit of the hub
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PLANNED = {
    "demo",
    "qwen2_1.5b_caldera_uniform",
    "qwen2_1.5b_caldera_manual_optimal",
    "qwen2_7b_caldera_uniform",
    "qwen2_7b_caldera_optimal",
    "qwen2_72b_study",
}


def load(name: str) -> StudyConfig:
    path = REPO / "configs" / f"{name}.yaml"
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    hub = raw["model"]["source"].startswith("Qwen/")
    return StudyConfig.model_validate(load_study(path, [f"model.revision='{COMMIT}'"] if hub else []))


def test_the_plans_files_are_there() -> None:
    assert {path.stem for path in CONFIGS} == PLANNED


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_a_study_of_more_than_a_few_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    config = load(path.stem)
    steps = plan_study(config, "model_x", fetch=config.model.revision is not None)
    assert len(steps) > 10
    assert len({step.name for step in steps}) == len(steps)


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem != "demo"], ids=lambda path: path.stem)
def test_a_hub_model_is_not_submitted_without_its_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    with pytest.raises(CliError, match="needs the commit"):
        load_study(path)


def test_the_demo_has_the_grid_that_the_issue_asks_for() -> None:
    demo = load("demo")
    assert (len(demo.grid.b_q), len(demo.grid.rank)) == (3, 3)
    assert len(demo.anchors_given) == 2
    assert demo.on_no_go == "continue"
    assert demo.phases == [0, 1, 2, 3, 4, 5]


def test_phase_0_is_the_plans() -> None:
    study = load("qwen2_1.5b_caldera_manual_optimal")
    assert study.phase0 is not None
    pairs = [(study.phase0.uniform, 2, 64), (study.phase0.high, 3, 128), (study.phase0.low, 2, 32)]
    for fields, b_q, rank in pairs:
        assert (fields["b_q"], fields["rank"]) == (b_q, rank)
    assert study.on_no_go == "stop"


def test_the_budgets_are_the_plans() -> None:
    assert [budget.gb for budget in load("qwen2_7b_caldera_optimal").budgets] == [8, 6, 10]
    assert load("qwen2_7b_caldera_optimal").scope == "model"
    large = load("qwen2_72b_study")
    assert [budget.gb for budget in large.budgets] == [18, 20, 22]
    assert large.scope == "decoder"
    assert len(large.grid.configs()) == 15
