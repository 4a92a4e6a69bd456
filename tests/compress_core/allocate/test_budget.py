"""Budgets as people write them."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from compress_core.allocate import AllocationProblem, Budget, uniform_candidates
from compress_core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (123456, 123456),
        ("123456", 123456),
        ("1_000", 1000),
        ("1,000 bytes", 1000),
        ("1,234,567", 1_234_567),
        ("18 GB", 18_000_000_000),
        ("7.4gb", 7_400_000_000),
        ("1.5 MiB", 1_572_864),
        ("0.5 kB", 500),
    ],
)
def test_bytes(small_problem: AllocationProblem, text: str | int, expected: int) -> None:
    assert Budget.parse(text).matrix_bytes(small_problem) == expected
    assert Budget.parse(text, scope="model").matrix_bytes(small_problem) == expected - 50_000


def test_bits_a_weight_and_fractions(small_problem: AllocationProblem) -> None:
    n = small_problem.n_weights
    assert Budget.parse("2.5 bpw").matrix_bytes(small_problem) == int(2.5 * n / 8)
    assert Budget.parse("2.5bpw", scope="model").matrix_bytes(small_problem) == int(2.5 * n / 8)
    assert Budget.parse("25%").matrix_bytes(small_problem) == n // 2
    assert Budget.parse("50 %", scope="model").matrix_bytes(small_problem) == (2 * n + 50_000) // 2 - 50_000


def test_a_fraction_is_exact_where_a_float_is_not(small_problem: AllocationProblem) -> None:
    assert Budget.parse("2.3 GB").matrix_bytes(small_problem) == 2_300_000_000
    assert Budget.parse("1.1 MB").matrix_bytes(small_problem) == 1_100_000


def test_uniform(small_problem: AllocationProblem) -> None:
    by_config = {(c.config.b_q, c.config.rank): c for c in uniform_candidates(small_problem)}
    assert Budget.parse("uniform:b_q=3,rank=32").matrix_bytes(small_problem) == by_config[3, 32].total_bytes
    by_hash = f"uniform:{by_config[2, 0].config.config_hash}"
    assert Budget.parse(by_hash, scope="model").matrix_bytes(small_problem) == by_config[2, 0].total_bytes
    with pytest.raises(ConfigError, match="matches several configs"):
        Budget.parse("uniform:b_q=3").matrix_bytes(small_problem)
    with pytest.raises(ConfigError, match="matches no config of the menu"):
        Budget.parse("uniform:b_q=3,rank=7").matrix_bytes(small_problem)
    with pytest.raises(ConfigError, match="FIELD=VALUE"):
        Budget.parse("uniform:bits=3")


@pytest.mark.parametrize(
    "text", ["", "abc", "-5", "5 parsecs", "1e9", "0", "0 bpw", "2.5", "2,5 bpw", "1,00", True, None, 2.5]
)
def test_nonsense_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="budget"):
        Budget.parse(text)  # type: ignore[arg-type]


def test_unknown_scope_is_refused() -> None:
    with pytest.raises(ConfigError, match="scope"):
        Budget.parse("5 GB", scope="layer")


@pytest.mark.parametrize("text", ["123456", "2.5 bpw", "25%", "uniform:b_q=3,rank=32", "18 GB"])
def test_text_form_reads_back(small_problem: AllocationProblem, text: str) -> None:
    budget = Budget.parse(text)
    assert Budget.parse(str(budget)).matrix_bytes(small_problem) == budget.matrix_bytes(small_problem)


def test_fractions_are_exact_and_rounded_down(small_problem: AllocationProblem) -> None:
    original = small_problem.original_bytes
    for fraction, tenths in ((0.1, 1), (0.3, 3), ("0.7", 7), (1, 10), (Decimal("0.9"), 9)):
        assert Budget.of_fraction(fraction).matrix_bytes(small_problem) == original * tenths // 10
    whole = Budget.of_fraction("0.3", scope="model").matrix_bytes(small_problem)
    assert whole == (original + 50_000) * 3 // 10 - 50_000
    # one byte more than the floor would be more than the fraction
    third = Budget.of_fraction(1 / 3).matrix_bytes(small_problem)
    assert third == original // 3
    uneven = replace(small_problem, original_matrix_bytes=1001)
    assert Budget.of_fraction(0.5).matrix_bytes(uneven) == 500
    assert str(Budget.of_fraction(0.25)) == "25%"
    assert Budget.parse(str(Budget.of_fraction(0.125))) == Budget.of_fraction(0.125)


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, 25, float("nan"), float("inf"), "half", True])
def test_fractions_out_of_range_are_refused(fraction: object) -> None:
    with pytest.raises(ConfigError, match="budget"):
        Budget.of_fraction(fraction)  # type: ignore[arg-type]


def test_more_than_all_of_the_original_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"120% of the original bytes is more than all"):
        Budget.parse("120%")
    with pytest.raises(ConfigError, match="scope"):
        Budget.of_fraction(0.5, scope="layer")
