"""Benchmark of constraints and what-ifs at 560 × 27: time of each question, and that every answer is proven.

    python -m benchmarks.allocate_prices [--write]

``--write`` records the table in benchmarks/results/allocate-prices-cpu.md. Tables as in ``benchmarks.allocate``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.allocation.instances import model_like
from compress_core.allocate import (
    AllocationProblem,
    Constraints,
    Group,
    WhatIf,
    certificate_document,
    constrained,
    solve_constrained,
    verify,
)
from compress_core.config import CompressionConfig
from compress_core.matrix import PROJECTIONS, MatrixKey, MatrixSpec

RESULTS = Path(__file__).parent / "results" / "allocate-prices-cpu.md"
SEEDS = (0, 1, 2)
FRACTIONS = (0.3, 0.6)
CONSTRAINTS: dict[str, Constraints] = {
    "none": Constraints(),
    "q, k, v agree on the config": Constraints(groups=(Group(("q", "k", "v")),)),
    "q, k, v agree on b_q": Constraints(groups=(Group(("q", "k", "v"), agree="b_q"),)),
    "at most 2 configs": Constraints(max_configs=2),
    "at most 4 configs": Constraints(max_configs=4),
    "at most 8 configs": Constraints(max_configs=8),
    "at most 4 configs, q, k, v agree on b_q": Constraints(
        max_configs=4, groups=(Group(("q", "k", "v"), agree="b_q"),)
    ),
}
QUESTIONS = ("solve", "pin", "not the chosen", "+1 MB", "second best", "regrets of all", "certificate", "verify")


@dataclass
class Measured:
    """What was seen under one constraint."""

    #: CPU milliseconds by question
    times: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in QUESTIONS})
    #: objective above that of the unconstrained optimum
    costs: list[float] = field(default_factory=list)
    proven: int = 0
    asked: int = 0


def problem_of(seed: int, fraction: float) -> tuple[AllocationProblem, int]:
    """An instance of ``benchmarks.allocate`` with names: 80 layers of seven projections."""
    instance = model_like(560, 27, seed, fraction)
    specs = tuple(MatrixSpec(MatrixKey(i // 7, PROJECTIONS[i % 7]), 1024, 1024, f"{i}.weight") for i in range(560))
    menu = tuple(
        CompressionConfig(b_q=b, rank=r, factor_bits=f)
        for b in (2, 3, 4)
        for r in (0, 32, 64, 128, 256)
        for f in ((4, 16) if r else (4,))
    )
    return AllocationProblem(specs, menu, instance.errors, instance.nbytes, np.ones(560)), instance.budget


def measure() -> dict[str, Measured]:
    found = {name: Measured() for name in CONSTRAINTS}
    for seed in SEEDS:
        for fraction in FRACTIONS:
            problem, budget = problem_of(seed, fraction)
            free = solve_constrained(constrained(problem), budget).objective
            for name, constraints in CONSTRAINTS.items():
                ask(found[name], problem, budget, constraints, free)
    return found


def ask(found: Measured, problem: AllocationProblem, budget: int, constraints: Constraints, free: float) -> None:
    def timed(question: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        answer = call()
        found.times[question].append(1e3 * (time.process_time() - began))
        return answer

    solution = timed("solve", lambda: solve_constrained(constrained(problem, constraints), budget))
    what_if = WhatIf(problem, budget, constraints, solution=solution)
    # of no special place in the model, and never the chosen config
    key, column = problem.specs[233].key, (int(solution.choice[233]) + 5) % len(problem.menu)
    answers = [
        timed("pin", lambda: what_if.pin(key, problem.menu[column])),
        timed("not the chosen", lambda: what_if.other_than_chosen(key)),
        timed("+1 MB", lambda: what_if.more_bytes(10**6)),
        timed("second best", what_if.second_best),
    ]
    timed("regrets of all", what_if.regrets)
    document = timed("certificate", lambda: certificate_document(problem, solution, constraints=constraints))
    checks = timed("verify", lambda: verify(document))
    if not all(check.passed for check in checks):
        raise SystemExit(f"a certificate does not hold: {[check for check in checks if not check.passed]}")
    found.asked += 1 + len(answers)
    found.proven += int(solution.optimal) + sum(answer.proven for answer in answers)
    found.costs.append(solution.objective / free - 1)


def report(found: dict[str, Measured]) -> str:
    lines = [
        "# Constraints and what-ifs at 560 × 27 on the CPU",
        "",
        f"{date.today():%Y-%m-%d}; `python -m benchmarks.allocate_prices --write`; Python {platform.python_version()}, "
        f"numpy {np.__version__}; {os.cpu_count()} cores ({platform.machine()}), shared with other work (load "
        f"{os.getloadavg()[0]:.0f}), one thread. Tables as in [allocate-cpu](allocate-cpu.md): {len(SEEDS)} seeds × "
        f"{len(FRACTIONS)} budgets. CPU milliseconds, median (most); every question is solved anew and exactly.",
        "",
        f"| constraints | {' | '.join(QUESTIONS)} | proven | objective above unconstrained |",
        "|---" * (len(QUESTIONS) + 3) + "|",
    ]
    for name, measured in found.items():
        times = [f"{statistics.median(t):.0f} ({max(t):.0f})" for t in measured.times.values()]
        cost = f"+{min(measured.costs):.2%} – +{max(measured.costs):.2%}"
        lines.append(f"| {name} | {' | '.join(times)} | {measured.proven} of {measured.asked} | {cost} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    text = report(measure())
    if chosen.write:
        RESULTS.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
