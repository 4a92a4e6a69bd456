"""The parts of training that can be wrong in silence: the schedule, the dealing of windows, restarts."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from demo.batches import Batches
from demo.report import round_to_nearest
from demo.train import Progress, load_checkpoint, rate_at, save_checkpoint, set_rates


def test_rate_climbs_holds_and_ends_at_zero():
    rates = [rate_at(f / 1000) for f in range(1001)]
    assert rates[0] == 0.0
    assert max(rates) == 1.0
    assert rates[1000] == 0.0
    assert rate_at(1.01) == 0.0
    assert all(a >= b for a, b in pairwise(rates[300:]))


def test_set_rates_scales_the_peak_not_the_last_rate():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    for _ in range(3):
        set_rates([optimizer], 0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def batches(seed: int = 0) -> Batches:
    pools = {"a": np.arange(1000, dtype=np.uint16), "b": np.arange(2000, 2400, dtype=np.uint16)}
    return Batches(pools, {"a": 3, "b": 1}, 10, seed)


def test_a_step_is_a_function_of_seed_and_step():
    dealt = batches()
    early = dealt.at(2)
    dealt.at(40)
    assert torch.equal(dealt.at(2), early)
    assert torch.equal(batches().at(2), early)
    assert not torch.equal(batches(seed=1).at(2), early)


def test_windows_are_contiguous_and_dealt_without_replacement():
    ids = torch.cat([batches().at(step)[:3] for step in range(32)])
    assert ids.shape == (96, 11)
    assert torch.equal(ids.diff(dim=1), torch.ones(96, 10, dtype=torch.int64))
    assert len(ids[:, 0].unique()) == 96
    assert batches().at(7)[3].min() >= 2000


def test_checkpoint_restores_weights_optimiser_and_progress(tmp_path):
    def trained(steps: int) -> tuple[torch.nn.Module, list[torch.optim.Optimizer]]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 4)
        opts: list[torch.optim.Optimizer] = [torch.optim.AdamW(layer.parameters(), lr=0.1)]
        go_on(layer, opts, steps)
        return layer, opts

    def go_on(layer: torch.nn.Module, opts: list[torch.optim.Optimizer], steps: int) -> None:
        for _ in range(steps):
            set_rates(opts, 0.5)
            layer(torch.ones(1, 4)).square().sum().backward()
            opts[0].step()
            opts[0].zero_grad()

    path = tmp_path / "checkpoint.pt"
    layer, opts = trained(3)
    save_checkpoint(path, layer, opts, Progress(3, 1.5, [{"step": 3}]))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]

    again, again_opts = trained(0)
    progress = load_checkpoint(path, again, again_opts)
    assert progress == Progress(3, 1.5, [{"step": 3}])
    go_on(again, again_opts, 2)
    whole, _ = trained(5)
    torch.testing.assert_close(again.weight, whole.weight, rtol=0, atol=0)


def test_no_checkpoint_is_a_fresh_start(tmp_path):
    assert load_checkpoint(tmp_path / "none.pt", torch.nn.Linear(1, 1), []) == Progress()


def test_round_to_nearest_keeps_the_largest_weight_and_the_zero_row():
    weight = torch.tensor([[1.0, -0.4, 0.1], [0.0, 0.0, 0.0], [-3.0, 1.4, 1.6]])
    assert round_to_nearest(weight, 2).tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-3.0, 0.0, 3.0]]
    assert round_to_nearest(weight, 8).sub(weight).abs().max() < 3.0 / 127
