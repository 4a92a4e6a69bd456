"""`bitbudget demo` and `submit --wait`: a small study on a real model, from its file to the headline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("stack")]

STUDY = """
name: small
model: {{source: {model}}}
text: {{kind: file, path: {text}}}
calibration: {{samples: 2, length: 32}}
grid: {{codebook: scalar, b_q: [2, 3, 4], rank: [0], iterations: 1}}
baselines: {{rtn: [2]}}
budgets: [{{uniform: {{b_q: 3, rank: 0}}}}]
objective: error
validation: {{windows: 4, length: 32, random: 3, uniforms: 2}}
evaluation: {{length: 32, windows: 4}}
phases: [1, 3, 4]
on_no_go: continue
"""


@pytest.fixture
def study(shared_data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    text = shared_data / "tinystories" / "tinystories_val.txt"
    path.write_text(STUDY.format(model=shared_data / "models" / "stories260K", text=text))
    return path


@pytest.fixture
def run(bitbudget: Callable, stack, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """``bitbudget …`` in the var folder of the session's stack."""
    monkeypatch.setenv("BITBUDGET_VAR_DIR", str(stack.var_dir))
    return bitbudget


def test_demo_uses_the_stack_that_runs_and_ends_with_gates_and_headline(run: Callable, stack, study: Path) -> None:
    outcome = run("demo", "--config", str(study))
    assert outcome.code == 0, outcome.err
    assert f"using the stack that runs at {stack.record.url}" in outcome.err
    assert "✓ sweep" in outcome.err
    for words in ("Gates", "optimal_differs", "NOT MEASURED", "bits/weight", "original", "round-to-nearest"):
        assert words in outcome.out, outcome.out

    # one sentence, whichever way it went
    assert any("niform" in line and "%" in line for line in outcome.out.splitlines()[-2:])
    assert f"page      {stack.record.url}/" in outcome.err
    # the stack was not ours to stop
    assert stack.process.poll() is None


def test_a_no_go_that_stops_the_study_is_exit_code_4_and_says_what_the_plan_does(run: Callable, study: Path) -> None:
    outcome = run("submit", str(study), "--set", "gates.error_ratio=1e9", "--set", "on_no_go=stop", "--wait")
    assert outcome.code == 4
    assert "error_varies: NO-GO" in outcome.err
    assert "The plan then:" in outcome.out
    assert "The study is stopped" in outcome.out


def test_a_failed_step_is_exit_code_1_with_its_cause(run: Callable, study: Path) -> None:
    # more windows than the text has: only the worker, which reads it, can find that out
    outcome = run("submit", str(study), "--set", "calibration.samples=9999999", "--wait")
    assert outcome.code == 1
    assert "9999999 were asked for" in outcome.err + outcome.out
    assert "Traceback" not in outcome.err


def test_a_budget_below_the_smallest_is_refused_at_once(run: Callable, study: Path) -> None:
    outcome = run("submit", str(study), "--set", "budgets=[{bytes: 1000}]", "--wait")
    assert outcome.code == 2
    assert "1,000 bytes are below the" in outcome.err
    assert "Traceback" not in outcome.err
