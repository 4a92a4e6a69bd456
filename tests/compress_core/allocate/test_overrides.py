"""Overrides as YAML."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from compress_core.allocate import (
    AllocationProblem,
    Constraints,
    Group,
    allocation_from_choice,
    optimal_allocation,
    overrides_from_yaml,
    overrides_to_yaml,
)
from compress_core.config import CODEBOOK_BITS, UNROTATED_CODEBOOKS, CompressionConfig
from compress_core.errors import ConfigError, RankTooLarge
from compress_core.matrix import PROJECTIONS, MatrixKey

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


def test_every_config_survives_exactly() -> None:
    """Whatever fields a config has, also those without effect on its hash: the file says all of them."""
    rng = np.random.default_rng(0)
    configs = {}
    for layer in range(40):
        for expert in (0, 1, 11):
            codebook = str(rng.choice(["scalar", "e8", "trellis", "rtn", "gptq", "raw"]))
            bits = tuple(int(b) for b in rng.choice([4, 8, 16], 2))
            configs[MatrixKey(layer, str(rng.choice(PROJECTIONS)), expert)] = CompressionConfig(
                b_q=int(rng.choice(CODEBOOK_BITS[codebook])),
                rank=0 if codebook in UNROTATED_CODEBOOKS else int(rng.integers(0, 3)) * 16,
                factor_bits=(bits[0], bits[1]) if layer % 2 else bits[0],
                codebook=codebook,
                seed=int(rng.integers(2**31)),
                iterations=int(rng.integers(1, 5)),
                states=2 ** int(rng.integers(8, 13)),
            )
    text = overrides_to_yaml(configs)
    read = overrides_from_yaml(text)
    assert read == configs
    assert list(read) == sorted(configs, key=lambda k: (k.layer_idx, PROJECTIONS.index(k.projection), k.expert_idx))
    assert overrides_to_yaml(read) == text
    assert yaml.safe_load(text)["matrices"].keys() == {str(key) for key in configs}


def test_an_allocation_under_groups_becomes_an_allocation_again(small_problem: AllocationProblem) -> None:
    """What the file says is what the allocation has, ranks clamped: the bytes are the same without the solver."""
    constraints = Constraints(groups=(Group(("q", "k", "v")), Group(("gate", "up"), agree="b_q")), max_configs=3)
    budget = (small_problem.smallest_bytes or 0) * 3 // 2
    allocation = optimal_allocation(small_problem, budget, constraints=constraints)
    read = overrides_from_yaml(overrides_to_yaml(allocation.configs), small_problem.specs)
    columns = []
    for row, spec in enumerate(small_problem.specs):
        fitting = [j for j in range(6) if small_problem.config_of(row, j) == read[spec.key]]
        columns.append(fitting[0])
    again = allocation_from_choice(small_problem, columns, kind="overrides")
    assert again.total_bytes == allocation.total_bytes
    assert again.configs == allocation.configs
    free = optimal_allocation(small_problem, budget)
    lines = [overrides_to_yaml(a.configs).splitlines() for a in (allocation, free)]
    changed = sum(a != b for a, b in zip(*lines, strict=True))
    assert changed == sum(allocation.configs[key] != free.configs[key] for key in free.configs) > 0


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
