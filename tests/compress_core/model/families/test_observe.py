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


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
def test_inputs_of_routed_experts(
    make_family: Callable[[str], Path], random_windows: Callable[..., TokenWindows], name: str
) -> None:
    path, windows = make_family(name), random_windows(5, 10)
    checkpoint = open_checkpoint(path)
    moments = _observe_all(checkpoint, windows.ids)
    x_TD = _seen_by_modules(path, windows.ids)["model.layers.1.mlp.gate"]
    router_ED = checkpoint.tensors["model.layers.1.mlp.gate.weight"]
    chosen_TK = (x_TD @ DenseWeights(checkpoint).tensor(router_ED.name).T).topk(2).indices
    counts = []
    for expert in range(5):
        gate, up = (read_matrix(checkpoint, checkpoint.matrix(MatrixKey(1, p, expert))) for p in ("gate", "up"))
        tokens = [token for token, chosen in zip(x_TD, chosen_TK.tolist(), strict=True) if expert in chosen]
        counts.append(len(tokens))
        assert moments[1, f"gate_up.{expert}"].n_tokens == moments[1, f"down.{expert}"].n_tokens == len(tokens)
        _close(moments[1, f"gate_up.{expert}"], torch.stack(tokens))
        _close(moments[1, f"down.{expert}"], torch.stack([silu(gate @ token) * (up @ token) for token in tokens]))
    assert sum(counts) == 2 * 50
    assert min(counts) > 0


def test_stand_ins_for_experts_that_saw_no_token(
    make_family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_family("qwen2_moe")
    checkpoint, ids = open_checkpoint(path), np.array([[5, 5, 5, 5]], dtype=np.int32)
    monkeypatch.setattr(routed, "STAND_INS", 3)
    moments = _observe_all(checkpoint, ids)
    # the same token four times over: some of five experts were never among its best two
    unseen = [e for e in range(5) if not moments[1, f"gate_up.{e}"].seen]
    assert unseen
    x_TD = _seen_by_modules(path, ids)["model.layers.1.mlp.gate"][:3]
    for expert in unseen:
        assert moments[1, f"gate_up.{expert}"].n_tokens == moments[1, f"down.{expert}"].n_tokens == 0
        assert not moments[1, f"down.{expert}"].seen
        gate, up = (read_matrix(checkpoint, checkpoint.matrix(MatrixKey(1, p, expert))) for p in ("gate", "up"))
        _close(moments[1, f"gate_up.{expert}"], x_TD)
        _close(moments[1, f"down.{expert}"], silu(x_TD @ gate.T) * (x_TD @ up.T))


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
