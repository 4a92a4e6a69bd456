"""What the pages of gains and objectives compute from losses, on numbers that can be checked by hand."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest

from benchmarks.allocation.experiment import Objective, Trial
from benchmarks.allocation.panel import SETTINGS, Candidate, Panel
from benchmarks.allocation_lab import Lab, Losses, choice_hash
from benchmarks.objectives import check, quick
from compress_core import CompressionConfig, MatrixKey


def losses(nats_a_token: float, kl: float = 0.0, n: int = 12) -> Losses:
    rng = np.random.default_rng(0)
    nll_N = (nats_a_token + 0.1 * rng.normal(size=n)) * 255
    return Losses(np.full(n, kl), nll_N)


def panel(uniform: Losses, original: Losses) -> Panel:
    candidate = Candidate("best uniform", 100, {}, uniform)
    return Panel(cast(Lab, None), "scalar", 100, "scalar 3b r0", original, candidate, (), None)


def test_a_gain_is_one_less_the_ratio_of_perplexities() -> None:
    uniform, optimum, original = losses(2.0), losses(1.9), losses(1.8)
    gain, low, high = panel(uniform, original).gain(optimum)
    # the same noise in every window: the pairs differ by exactly 0.1
    assert gain == pytest.approx(1 - math.exp(-0.1))
    assert low == pytest.approx(gain)
    assert high == pytest.approx(gain)
    assert optimum.ppl / uniform.ppl == pytest.approx(math.exp(-0.1))


def test_what_is_removed_is_a_share_of_the_excess() -> None:
    share, low, high = panel(losses(2.0), losses(1.8)).removed(losses(1.9))
    assert share == pytest.approx(0.5)
    assert low <= share <= high + 1e-12


def test_a_loss_removes_less_than_nothing() -> None:
    of = panel(losses(2.0), losses(1.8))
    assert of.gain(losses(2.1))[0] < 0
    assert of.removed(losses(2.1))[0] == pytest.approx(-0.5)


def test_a_link_changes_what_is_predicted_and_no_rank() -> None:
    rng = np.random.default_rng(1)
    table = rng.uniform(0.01, 0.1, size=(5, 3))
    plain = Objective("plain", table, in_nats=True, evaluations=2)
    linked = Objective("linked", table, in_nats=True, evaluations=2, link=(2.0, 1.5))
    choices = [rng.integers(0, 3, size=5) for _ in range(12)]
    # realised as the link says
    trials = [
        Trial("random", choice, Losses(np.full(4, linked.predicted(choice)) * np.linspace(0.9, 1.1, 4), np.ones(4)))
        for choice in choices
    ]
    rank, slope = quick(plain, trials)
    assert rank == pytest.approx(1)
    assert slope == pytest.approx(1.5)
    found = check(linked, trials)
    assert found.log_slope is not None
    assert found.kappa is not None
    assert found.log_slope.value == pytest.approx(1)
    assert found.kappa.value == pytest.approx(1)


def test_a_choice_is_known_by_its_configs_in_any_order() -> None:
    a, b = MatrixKey(0, "q"), MatrixKey(0, "k")
    coarse, fine = CompressionConfig(b_q=2), CompressionConfig(b_q=3)
    assert choice_hash({a: coarse, b: fine}) == choice_hash({b: fine, a: coarse})
    assert choice_hash({a: coarse, b: fine}) != choice_hash({a: fine, b: coarse})


@pytest.mark.parametrize("name", SETTINGS)
def test_anchors_are_on_the_menu(name: str) -> None:
    setting = SETTINGS[name]
    for codebook in setting.codebooks:
        menu = setting.menu(codebook)
        assert len({config.config_hash for config in menu}) == len(menu)
        assert {config.config_hash for config in setting.anchors(codebook)} <= {config.config_hash for config in menu}
