"""H of every distinct input of every family equals what a naive forward pass of the whole model shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM

from compress_core.calibrate import routed
from compress_core.calibrate.inputs import input_name
from compress_core.calibrate.observe import observe
from compress_core.calibrate.second_moment import SecondMoment
from compress_core.checkpoint import Checkpoint, open_checkpoint
from compress_core.checkpoint.read import DenseWeights, read_matrix
from compress_core.errors import NonFiniteValues
from compress_core.matrix import NO_EXPERT, MatrixKey
from compress_core.stream.hidden import advance, embed_all
from compress_core.stream.model import StreamedModel
from compress_core.text.tokens import TokenWindows


def _observe_all(
    checkpoint: Checkpoint, ids: np.ndarray, wanted: list[str] | None = None, batch_tokens: int = 20
) -> dict[tuple[int, str], SecondMoment]:
    model = StreamedModel(DenseWeights(checkpoint))
    hidden = embed_all(model, ids, batch_tokens)
    out = {}
    for layer_idx in range(checkpoint.n_layers):
        with model.layer(layer_idx) as layer, observe(checkpoint, model, layer, layer_idx, wanted) as moments:
            advance(model, layer_idx, hidden, batch_tokens)
        out.update({(layer_idx, name): moment for name, moment in moments.items()})
    return out


def _seen_by_modules(path: Path, ids: np.ndarray) -> dict[str, Tensor]:
    """The inputs (N, I) of every module of the whole model that takes one, by the module's name."""
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    seen: dict[str, Tensor] = {}
    for name, module in whole.named_modules():
        module.register_forward_pre_hook(
            lambda module, inputs, name=name: seen.__setitem__(name, inputs[0].flatten(0, -2)) if inputs else None
        )
    with torch.no_grad():
        whole(torch.from_numpy(ids).long())
    return seen


def _close(moment: SecondMoment, x: Tensor) -> None:
    expected = x.double().T @ x.double() / x.shape[0]
    hessian = moment.mean()
    assert torch.equal(hessian, hessian.T)
    torch.testing.assert_close(hessian.double(), expected, atol=2e-5 * float(expected.diagonal().mean()), rtol=1e-4)


def test_inputs_of_modules(family: Path, random_windows: Callable[..., TokenWindows]) -> None:
    checkpoint, windows = open_checkpoint(family), random_windows(5, 10)
    moments = _observe_all(checkpoint, windows.ids)
    assert list(moments) == list(dict.fromkeys((s.key.layer_idx, input_name(s.key)) for s in checkpoint.matrices()))
    seen = _seen_by_modules(family, windows.ids)
    for spec in checkpoint.matrices():
        if spec.key.expert_idx == NO_EXPERT:
            moment = moments[spec.key.layer_idx, input_name(spec.key)]
            assert (moment.n_tokens, moment.width) == (50, spec.in_features)
            _close(moment, seen[spec.module_name])


def _routes(path: Path, ids: np.ndarray) -> tuple[Tensor, list[list[int]]]:
    """What enters the experts of layer 1, (N, D), and the two experts that each vector is routed to."""
    weights = DenseWeights(open_checkpoint(path))
    x_TD = _seen_by_modules(path, ids)["model.layers.1.mlp.gate"]
    return x_TD, (x_TD @ weights.tensor("model.layers.1.mlp.gate.weight").T).topk(2).indices.tolist()


def _expert(checkpoint: Checkpoint, expert: int, x_TD: Tensor) -> Tensor:
    """What enters the down projection of an expert of layer 1, token by token."""
    gate, up = (read_matrix(checkpoint, checkpoint.matrix(MatrixKey(1, p, expert))) for p in ("gate", "up"))
    return torch.stack([silu(gate @ x) * (up @ x) for x in x_TD])


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
def test_inputs_of_routed_experts(
    make_family: Callable[[str], Path],
    random_windows: Callable[..., TokenWindows],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(routed, "ENOUGH", 0)
    path, windows = make_family(name), random_windows(5, 10)
    checkpoint = open_checkpoint(path)
    moments = _observe_all(checkpoint, windows.ids)
    x_TD, chosen = _routes(path, windows.ids)
    counts = []
    for expert in range(5):
        own_TD = x_TD[[expert in experts for experts in chosen]]
        counts.append(len(own_TD))
        assert moments[1, f"gate_up.{expert}"].n_tokens == moments[1, f"down.{expert}"].n_tokens == len(own_TD)
        _close(moments[1, f"gate_up.{expert}"], own_TD)
        _close(moments[1, f"down.{expert}"], _expert(checkpoint, expert, own_TD))
    assert sum(counts) == 2 * 50
    assert min(counts) > 0


def test_experts_with_few_tokens_lean_on_the_first_vectors(
    make_family: Callable[[str], Path], random_windows: Callable[..., TokenWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routed, "STAND_INS", 13)  # not a whole batch
    monkeypatch.setattr(routed, "ENOUGH", 1)
    path, windows = make_family("qwen2_moe"), random_windows(6, 10)
    checkpoint = open_checkpoint(path)
    moments = _observe_all(checkpoint, windows.ids)
    x_TD, chosen = _routes(path, windows.ids)
    leaning = set()
    for expert in range(5):
        own_TD = x_TD[[expert in experts for experts in chosen]]
        own_TF, first_TF = (_expert(checkpoint, expert, x) for x in (own_TD, x_TD[:13]))
        for group, own, first in (("gate_up", own_TD, x_TD[:13]), ("down", own_TF, first_TF)):
            moment, width = moments[1, f"{group}.{expert}"], own.shape[1]
            leaning.add(len(own) < width)
            times = (width / 13) ** 0.5 if len(own) < width else 0.0
            total = own.double().T @ own.double() + (times * first.double()).T @ (times * first.double())
            expected = total / (len(own) + (width if times else 0))
            torch.testing.assert_close(moment.mean().double(), expected, atol=1e-5, rtol=1e-4)
            assert moment.n_tokens == len(own)
    assert leaning == {True, False}


def test_experts_that_saw_no_token(make_family: Callable[[str], Path]) -> None:
    path = make_family("qwen2_moe")
    checkpoint, ids = open_checkpoint(path), np.array([[5, 5, 5, 5]], dtype=np.int32)
    moments = _observe_all(checkpoint, ids)
    # the same token four times over: some of five experts were never among its best two
    unseen = [e for e in range(5) if not moments[1, f"gate_up.{e}"].seen]
    assert unseen
    x_TD, _ = _routes(path, ids)
    for expert in unseen:
        assert moments[1, f"gate_up.{expert}"].n_tokens == moments[1, f"down.{expert}"].n_tokens == 0
        _close(moments[1, f"gate_up.{expert}"], x_TD)
        _close(moments[1, f"down.{expert}"], _expert(checkpoint, expert, x_TD))


def test_only_what_is_wanted(make_family: Callable[[str], Path], random_windows: Callable[..., TokenWindows]) -> None:
    checkpoint, windows = open_checkpoint(make_family("qwen2_moe")), random_windows(5, 10)
    wanted = ["o", "gate_up.3", "down.1"]
    some, every = _observe_all(checkpoint, windows.ids, wanted), _observe_all(checkpoint, windows.ids)
    assert list(some) == [(0, "o"), (1, "o"), (1, "down.1"), (1, "gate_up.3")]
    for place, moment in some.items():
        assert torch.equal(moment.mean(), every[place].mean())


def test_hooks_go_away(make_family: Callable[[str], Path], random_windows: Callable[..., TokenWindows]) -> None:
    checkpoint, windows = open_checkpoint(make_family("qwen2_moe")), random_windows(1, 8)
    model = StreamedModel(DenseWeights(checkpoint))
    hidden = embed_all(model, windows.ids)
    with model.layer(1) as layer:
        with observe(checkpoint, model, layer, 1) as moments:
            advance(model, 1, hidden.clone())
        with pytest.raises(NonFiniteValues), observe(checkpoint, model, layer, 1):
            advance(model, 1, hidden * torch.nan)
        hooked = [module for module in layer.modules() if module._forward_pre_hooks]
        advance(model, 1, hidden.clone())
    assert hooked == []
    assert {moment.n_tokens for name, moment in moments.items() if "." not in name} == {8}
