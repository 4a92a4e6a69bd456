"""`bitbudget plan`: the table, what does not fit, and a probe on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.plan_table import gigabytes, long_duration, plan_sentences, plan_table, verdict

STUDY = """
name: tiny
model: {{source: {model}}}
calibration: {{samples: 4, length: 32}}
grid: {{codebook: scalar, b_q: [2], rank: [0, 2]}}
evaluation: {{length: 32, windows: 4}}
objective: error
phases: [1, 3]
"""


@pytest.fixture
def study(tmp_path: Path, shared_data: Path) -> str:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(model=shared_data / "models" / "stories260K"))
    return str(path)


@pytest.mark.slow
@pytest.mark.xdist_group("stack")
def test_a_plan_with_a_probe_has_times(run: Callable, study: str) -> None:
    outcome = run("plan", study, "--measure", "--measure-for", "1", "--json", "--set", "grid.b_q=[3]")
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert found["device"]["source"] == "measured"
    assert found["totals"]["seconds"] > 0
    table = run("plan", study)
    assert table.code == 0
    for words in ("sweep", "matrix × config", "RAM", "total", "It fits.", "experiments of the grid"):
        assert words in table.out, words


def test_what_does_not_fit_is_exit_code_1(ask: Callable, repo: Path) -> None:
    outcome = ask("plan", str(repo / "configs" / "qwen2_72b_study.yaml"), "--device", "RTX 3090", "--set",
                  "calibration.samples=100000000")  # fmt: skip
    assert outcome.code == 1
    assert "It does not fit" in outcome.out
    assert "calibration" in outcome.out.partition("It does not fit")[2]
    assert "8,400 experiments of the grid" in outcome.out


def test_an_unknown_card_is_refused_in_words(ask: Callable, study: str) -> None:
    outcome = ask("plan", study, "--device", "GTX 1080")
    assert outcome.code == 2
    assert "RTX 3090" in outcome.err


def test_help_has_an_example(bitbudget: Callable) -> None:
    outcome = bitbudget("plan", "--help")
    assert outcome.code == 0
    assert "bitbudget plan configs/demo.yaml --measure" in outcome.out


def test_no_server_is_exit_code_3(bitbudget: Callable, repo: Path) -> None:
    assert bitbudget("plan", str(repo / "configs" / "demo.yaml")).code == 3


def answer(**changes: Any) -> dict[str, Any]:
    """A plan as the server tells it."""
    step = {
        "step": "sweep", "unit": "matrix × config", "count": 10080, "jobs": 1, "seconds": 500_000.0, "share": 1.0,
        "memory": 5_170_000_000, "device_memory": 15_070_000_000, "disk": 0, "scratch": 137_000_000_000,
        "largest": "0.down", "notes": [],
    }  # fmt: skip
    totals = {
        "jobs": 1, "cells": 10080, "grid_cells": 8400, "seconds": 500_000.0, "idle_seconds": 250_000.0,
        "low_seconds": 100_000.0, "high_seconds": 1_000_000.0, "memory": 5_170_000_000,
        "device_memory": 15_070_000_000, "disk": 137_000_000_000,
    }  # fmt: skip
    found: dict[str, Any] = {
        "model": {"name": "large", "origin": "config.json", "n_matrices": 560},
        "device": {"name": "card", "source": "estimated"},
        "steps": [step],
        "totals": totals,
        "fits": True,
        "findings": [],
        "notes": ["an assumption"],
    }
    return found | changes


def test_the_table_shows_every_quantity() -> None:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(plan_table(answer()))
    text = captured.get()
    for words in ("10,080", "5 d 19 h", "100%", "5.17 GB", "15 GB", "– (+137 GB)", "large on card (times: estimated"):
        assert words in text, words


def test_the_sentences_count_experiments_and_load() -> None:
    first, second, note = plan_sentences(answer())
    assert first == "560 matrices make 8,400 experiments of the grid, and 1,680 of rank 0 and the baselines."
    assert "1 d 04 h to 11 d 14 h; 2 d 21 h on a machine that does nothing else" in second
    assert note == "Note: an assumption."


def test_the_verdict_names_what_does_not_fit() -> None:
    assert verdict(answer()).plain == "It fits."
    refused = verdict(answer(fits=False, findings=[{"message": "sweep needs more"}])).plain
    assert refused == "It does not fit:\n  sweep needs more"


def test_quantities_for_people() -> None:
    assert [gigabytes(n) for n in (None, 0, 10**6, 25 * 10**9, 1234 * 10**9)] == [
        "–", "0.00 GB", "0.00 GB", "25 GB", "1,234 GB",
    ]  # fmt: skip
    assert [long_duration(s) for s in (None, 42.0, 7200.0, 90_000.0)] == ["–", "42 s", "2 h 00 min", "1 d 01 h"]
