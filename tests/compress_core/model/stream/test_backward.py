"""The way back: the gradients of a whole model, with one layer in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.errors import Interrupted, NonFiniteValues
from compress_core.matrix import MatrixSpec
from compress_core.stream import backward as backward_module
from compress_core.stream.backward import BackwardPass, Passages
from compress_core.stream.model import StreamedModel
from compress_core.text.tokens import TokenWindows


def gradients(path: Path, windows: TokenWindows, **options: Any) -> dict[tuple[MatrixSpec, int], torch.Tensor]:
    """Of each matrix and sequence, by its weight."""
    checkpoint = open_checkpoint(path)
    found = {}

    def note(layer_idx: int, number: int, passages: Passages) -> None:
        for spec, of_matrix in passages.items():
            assert spec.key.layer_idx == layer_idx
            zero = torch.zeros(spec.out_features, spec.in_features)
            found[spec, number] = sum((passage.g_tO.T @ passage.x_tI for passage in of_matrix), zero)

    back = BackwardPass(checkpoint, StreamedModel(DenseWeights(checkpoint)), windows, **options)
    assert list(back.walk(note)) == list(range(checkpoint.n_layers - 1, -1, -1))
    return found


@pytest.fixture
def likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The label of each position is the likeliest token, so that it can be known."""
    monkeypatch.setattr(torch, "multinomial", lambda p, n, generator: p.argmax(-1, keepdim=True))


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "phi3", "qwen2_moe"])
@pytest.mark.usefixtures("likeliest")
def test_gradients_are_those_of_the_whole_model(
    name: str, make_family: Callable[[str], Path], random_windows: Callable[..., TokenWindows]
) -> None:
    path, windows = make_family(name), random_windows(2, 12)
    found = gradients(path, windows)
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, experts_implementation="eager")
    checkpoint = open_checkpoint(path)
    streamed = StreamedModel(DenseWeights(checkpoint))
    for number in range(2):
        whole.zero_grad()
        logits = whole(torch.from_numpy(windows.ids[number : number + 1].astype(np.int64))).logits[0]
        torch.log_softmax(logits, -1).max(-1).values.sum().backward()
        for layer_idx, layer in enumerate(whole.model.layers):
            for parameter in layer.parameters():  # the views then show gradients
                parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for spec in checkpoint.layer_matrices(layer_idx):
                expected = streamed.weight_view(layer, spec)
                scale = float(expected.detach().abs().max())
                torch.testing.assert_close(found[spec, number], expected.detach(), rtol=1e-3, atol=1e-5 + 1e-4 * scale)
        whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, experts_implementation="eager")
    assert max(float(g.abs().max()) for g in found.values()) > 0.01


def test_labels_are_seeded_and_states_may_lie_in_a_file(
    qwen2: Path, random_windows: Callable[..., TokenWindows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = random_windows(2, 12)
    first = gradients(qwen2, windows)
    monkeypatch.setattr(backward_module, "_LOGITS_AT_ONCE", 320 * 12)
    mapped = gradients(qwen2, windows, ram_bytes=0, folder=tmp_path)
    assert all(torch.equal(first[at], mapped[at]) for at in first)
    assert list(tmp_path.iterdir()) == []
    other = gradients(qwen2, windows, seed=1)
    assert not any(torch.equal(first[at], other[at]) for at in first)


def test_one_layer_is_loaded_at_a_time(
    qwen2: Path, random_windows: Callable[..., TokenWindows], loaded_layers: Any
) -> None:
    gradients(qwen2, random_windows(1, 8))
    assert (loaded_layers.most, loaded_layers.now) == (1, set())


def test_it_stops_and_names_where_gradients_overflow(
    qwen2: Path, random_windows: Callable[..., TokenWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(message: str) -> None:
        if message == "gradients of sequence 0 in layer 1":
            raise Interrupted("cancelled")

    with pytest.raises(Interrupted):
        gradients(qwen2, random_windows(1, 8), tell=stop)
    traced = StreamedModel.traced_layer

    def overflowing(model: StreamedModel, layer_idx: int, hidden: torch.Tensor) -> torch.Tensor:
        return traced(model, layer_idx, hidden) * (torch.inf if layer_idx == 1 else 1.0)

    monkeypatch.setattr(StreamedModel, "traced_layer", overflowing)
    with pytest.raises(NonFiniteValues, match="layer 1"):
        gradients(qwen2, random_windows(1, 8))
