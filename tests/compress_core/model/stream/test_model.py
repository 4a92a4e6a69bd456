"""The streamed model computes what transformers computes with the whole model in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.errors import CheckpointError, DeviceNotFound, NonFiniteValues
from compress_core.progress import silent
from compress_core.stream.hidden import run_all
from compress_core.stream.model import StreamedModel
from compress_core.text.tokens import TokenWindows


def _compare(path: Path, windows: TokenWindows, dtype: torch.dtype, tolerance: float) -> None:
    model = StreamedModel(DenseWeights(open_checkpoint(path)), dtype=dtype)
    hidden = run_all(model, windows.ids, silent, batch_tokens=2 * windows.length)
    logits = model.logits(hidden.reshape(-1, model.hidden_size)).reshape(*windows.ids.shape, -1)
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
    with torch.no_grad():
        expected = whole(torch.from_numpy(windows.ids).long()).logits.float()
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral"])
def test_logits_equal_from_pretrained(
    tiny_checkpoints: dict[str, Path], random_windows: Callable[..., TokenWindows], family: str
) -> None:
    # 5 windows in batches of 2: the last one is smaller; 33 tokens exceed Mistral's sliding window of 7
    _compare(tiny_checkpoints[family], random_windows(5, 33), torch.float32, 1e-4)


def test_logits_equal_in_bfloat16(qwen2: Path, random_windows: Callable[..., TokenWindows]) -> None:
    _compare(qwen2, random_windows(2, 9), torch.bfloat16, 0.08)


def test_logits_equal_on_a_real_model(shared_data: Path, random_windows: Callable[..., TokenWindows]) -> None:
    _compare(shared_data / "models" / "stories260K", random_windows(3, 64), torch.float32, 1e-3)


def test_only_loaded_layers_take_memory(qwen2: Path) -> None:
    model = StreamedModel(DenseWeights(open_checkpoint(qwen2)))
    with model.layer(1) as layer:
        assert not any(parameter.is_meta for parameter in layer.parameters())
    assert all(parameter.is_meta for parameter in layer.parameters())
    with pytest.raises(RuntimeError, match="inside"), model.layer(1):
        raise RuntimeError("inside")
    assert all(parameter.is_meta for parameter in layer.parameters())


@pytest.mark.parametrize("family", ["qwen2", "llama"])  # tied and untied
def test_a_layer_the_embedding_and_the_head_are_never_in_memory_together(
    tiny_checkpoints: dict[str, Path], family: str
) -> None:
    model = StreamedModel(DenseWeights(open_checkpoint(tiny_checkpoints[family])))
    tables = [model._model.get_input_embeddings(), model._model.get_output_embeddings()]

    def held() -> list[bool]:
        return [not table.weight.is_meta for table in tables]

    assert held() == [False, False]
    hidden = model.embed(torch.tensor([[1, 2, 3]]))
    assert held() == [True, False]
    with model.layer(0):
        assert held() == [False, False]
        hidden = model.run_layer(0, hidden)
        model.run_layer(0, hidden[:, :2])  # a shape that is new needs no embedding either
        assert held() == [False, False]
    logits = model.logits(hidden[0])
    assert held() == [False, True]
    assert torch.equal(logits, model.logits(hidden[0]))
    assert torch.equal(model.embed(torch.tensor([[2]])), model.embed(torch.tensor([[2]])))
    assert held() == [True, False]


def test_nan_weights_are_named(broken_copy: Path, random_windows: Callable[..., TokenWindows]) -> None:
    path = broken_copy / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, path)
    model = StreamedModel(DenseWeights(open_checkpoint(broken_copy)))
    with pytest.raises(NonFiniteValues, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*1 NaN") as caught:
        run_all(model, random_windows(1, 4).ids, silent)
    assert not caught.value.retryable


def test_overflowing_activations_are_named(broken_copy: Path, random_windows: Callable[..., TokenWindows]) -> None:
    path = broken_copy / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.2.mlp.down_proj.weight"] *= 1e38
    save_file(tensors, path)
    model = StreamedModel(DenseWeights(open_checkpoint(broken_copy)))
    with pytest.raises(NonFiniteValues, match="layer 2"):
        run_all(model, random_windows(1, 4).ids, silent)


def test_a_missing_norm_is_named(broken_copy: Path) -> None:
    path = broken_copy / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"no tensor model\.norm\.weight"):
        StreamedModel(DenseWeights(open_checkpoint(broken_copy)))


@pytest.mark.parametrize("changes", [{"model_type": "unheard-of"}, {"hidden_act": "no-such-function"}])
def test_a_config_that_transformers_cannot_build(broken_copy: Path, changes: dict[str, str]) -> None:
    config = json.loads((broken_copy / "config.json").read_text())
    (broken_copy / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match="transformers cannot build"):
        StreamedModel(DenseWeights(open_checkpoint(broken_copy)))


@pytest.mark.parametrize("device", ["cuda:7", "tpu", "meta"])
def test_an_absent_device_is_an_error(qwen2: Path, device: str) -> None:
    with pytest.raises(DeviceNotFound):
        StreamedModel(DenseWeights(open_checkpoint(qwen2)), device=device)
