"""Overrides as YAML."""

from __future__ import annotations

import pytest

from compress_core.allocate import AllocationProblem, optimal_allocation, overrides_from_yaml, overrides_to_yaml
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, RankTooLarge
from compress_core.matrix import MatrixKey

CONFIGS = {
    MatrixKey(10, "q"): CompressionConfig(b_q=2, rank=8, factor_bits=(4, 8), codebook="e8"),
    MatrixKey(2, "down"): CompressionConfig(b_q=5, codebook="scalar", seed=3),
    MatrixKey(2, "q"): CompressionConfig(b_q=4, codebook="rtn"),
    MatrixKey(2, "up", 1): CompressionConfig(b_q=3, iterations=7),
}


def test_round_trip_in_the_order_of_the_model() -> None:
    text = overrides_to_yaml(CONFIGS)
    assert overrides_from_yaml(text) == CONFIGS
    names = [line.split(":")[0].strip() for line in text.splitlines()[2:]]
    assert names == ["2.q", "2.up.1", "2.down", "10.q"]
    assert overrides_to_yaml(dict(reversed(list(CONFIGS.items())))) == text
    assert "10.q: {b_q: 2, rank: 8, factor_bits: [4, 8], codebook: e8, seed: 0, iterations: 2, states: 1024}" in text


def test_one_changed_matrix_changes_one_line() -> None:
    before = overrides_to_yaml(CONFIGS).splitlines()
    after = overrides_to_yaml({**CONFIGS, MatrixKey(2, "q"): CompressionConfig(b_q=2)}).splitlines()
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_an_allocation_survives(small_problem: AllocationProblem) -> None:
    allocation = optimal_allocation(small_problem, (small_problem.smallest_bytes or 0) * 3 // 2)
    assert overrides_from_yaml(overrides_to_yaml(allocation.configs), small_problem.specs) == allocation.configs


def test_nothing_at_all() -> None:
    assert overrides_from_yaml(overrides_to_yaml({})) == {}


def document(*lines: str) -> str:
    return "version: 1\nmatrices:\n" + "".join(f"  {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (document("0.qq: {b_q: 2}"), r"'0\.qq'.*projection out of q, k"),
        (document("0.q: {b_q: 2, rank: -4}"), r"'0\.q'.*rank must be 0 or more"),
        (document("0.q: {b_q: 2}", "0.q: {b_q: 3}"), r"'0\.q' appears twice \(line 4\)"),
        (document("0.q: {b_q: 2}", "00.q: {b_q: 3}"), r"'00\.q'.*named twice"),
        (document("0.q: {b_q: 2, b_q: 3}"), "'b_q' appears twice"),
        (document("x.q: {b_q: 2}"), r"'x\.q'"),
        (document("-1.q: {b_q: 2}"), "count from 0"),
        (document("0.q: {bits: 2}"), r"'0\.q'.*unknown config field 'bits'"),
        (document("0.q: {rank: 2}"), r"'0\.q'.*needs b_q"),
        (document("0.q: 3"), r"'0\.q' must be a mapping"),
        (document("0.q: {b_q: two}"), r"'0\.q'.*integer"),
        (document("0.q: {b_q: 2, factor_bits: four}"), r"'0\.q'"),
        (document("9.q: {b_q: 2}"), r"'9\.q'.*no matrix 9\.q"),
        ("version: 2\nmatrices: {}\n", "version 2"),
        ("matrices: {}\n", "exactly two keys"),
        ("version: 1\nmatrices: [1]\n", "map matrix names"),
        ("a: [", "not valid YAML"),
        ("!!python/object:os.system {}", "not valid YAML"),
        ("- 1", "exactly two keys"),
    ],
)
def test_mistakes_are_named(small_problem: AllocationProblem, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overrides_from_yaml(text, small_problem.specs)


def test_an_explicit_rank_too_large_is_refused(small_problem: AllocationProblem) -> None:
    with pytest.raises(RankTooLarge, match=r"'0\.k'.*at most 16"):
        overrides_from_yaml(document("0.k: {b_q: 2, rank: 17}"), small_problem.specs)
