"""Tiny random checkpoints made by transformers, and a tokenizer for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from compress_core.calibrate.calibration import Calibration
from compress_core.calibrate.run import calibrate_model
from compress_core.checkpoint import open_checkpoint
from compress_core.stream.model import StreamedModel
from compress_core.text.tokens import TokenWindows

# widths that are no power of two; grouped-query attention; three layers
SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 84,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
    "initializer_range": 0.15,
}
CORPUS = "\n\n".join(
    f"Number {n} is followed by {n + 1}; twice that is {2 * n}, and its square is {n * n}. Café № {n}."
    for n in range(400)
)


@pytest.fixture(scope="session")
def corpus_text() -> str:
    return CORPUS


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of a Qwen2 (biases, tied), a Llama (untied) and a Mistral (sliding window) with random weights."""
    root = tmp_path_factory.mktemp("checkpoints")
    makers = {
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, tie_word_embeddings=True)),
        "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=False)),
        "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=7, tie_word_embeddings=False)),
    }
    out = {}
    for number, (name, (model_class, config)) in enumerate(makers.items()):
        out[name] = root / name
        _save(model_class, config, out[name], number)
    return out


def _save(model_class: Any, config: Any, path: Path, seed: int) -> None:
    """A model with random weights, and a tokenizer."""
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():  # biases and norms that matter
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif "norm" in parameter_name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    _tokenizer().save_pretrained(path)


def _families() -> dict[str, Callable[[], Any]]:
    """What makes the config of each family: two layers, sliding windows of 7 where there are any."""
    base = SHAPE | {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "tie_word_embeddings": False}
    wide = base | {"head_dim": 12}  # more than hidden_size / num_attention_heads
    local = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
    experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {
        "qwen2": lambda: transformers.Qwen2Config(**base | {"tie_word_embeddings": True}),
        "qwen3": lambda: transformers.Qwen3Config(**wide),
        "llama2": lambda: transformers.LlamaConfig(**base | {"num_key_value_heads": 4}),
        "llama3": lambda: transformers.LlamaConfig(
            **base, rope_parameters=llama3 | {"rope_theta": 5e5, "original_max_position_embeddings": 32}
        ),
        "mistral": lambda: transformers.MistralConfig(**base, sliding_window=7),
        "gemma2": lambda: transformers.Gemma2Config(**wide | {"tie_word_embeddings": True}, **local),
        "gemma3": lambda: transformers.Gemma3TextConfig(**wide | {"tie_word_embeddings": True}, **local),
        "phi3": lambda: transformers.Phi3Config(**base),
        "olmo2": lambda: transformers.Olmo2Config(**base),
        # the first layer dense, the second with experts and one that all tokens share
        "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
            **base, **experts, shared_expert_intermediate_size=36, mlp_only_layers=[0]
        ),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**wide, **experts, norm_topk_prob=True),
    }


#: every family that is supported
FAMILIES = tuple(_families())


@pytest.fixture(scope="session")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny random checkpoint of a family (see ``FAMILIES``), made when it is first asked for."""
    root = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        if not (root / name).exists():
            _save(transformers.AutoModelForCausalLM.from_config, _families()[name](), root / name, 7)
        return root / name

    return make


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, make_family: Callable[[str], Path]) -> Path:
    """The checkpoint of every family in turn."""
    return make_family(request.param)


@pytest.fixture(params=["phi3", "qwen2_moe", "qwen3_moe"])
def unusual_family(request: pytest.FixtureRequest, make_family: Callable[[str], Path]) -> Path:
    """The checkpoints whose matrices are fused on disk, or stacked in memory, in turn."""
    return make_family(request.param)


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


@pytest.fixture
def qwen2(tiny_checkpoints: dict[str, Path]) -> Path:
    return tiny_checkpoints["qwen2"]


@pytest.fixture
def broken_copy(qwen2: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Qwen2 that a test may damage."""
    return Path(shutil.copytree(qwen2, tmp_path / "broken"))


@pytest.fixture(scope="session")
def write_safetensors() -> Callable[..., None]:
    """Write a raw safetensors file from a header dict and data bytes, valid or not."""

    def write(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", promised: int | None = None) -> None:
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes((len(raw) if promised is None else promised).to_bytes(8, "little") + raw + data)

    return write


@pytest.fixture(scope="session")
def random_windows() -> Callable[..., TokenWindows]:
    """Windows of random token ids of the tiny models' vocabulary."""

    def make(n_windows: int, length: int, seed: int = 0) -> TokenWindows:
        ids = np.random.default_rng(seed).integers(0, SHAPE["vocab_size"], (n_windows, length)).astype(np.int32)
        return TokenWindows(ids, np.full(n_windows, 3 * (length - 1), dtype=np.int64))

    return make


class LoadedLayers:
    """Which layers are in memory, and how many were at most."""

    def __init__(self) -> None:
        self.now: set[int] = set()
        self.most = 0


@pytest.fixture
def loaded_layers(monkeypatch: pytest.MonkeyPatch) -> LoadedLayers:
    """Of every streamed model of the test."""
    loaded = LoadedLayers()
    load, release = StreamedModel.load_layer, StreamedModel.release_layer

    def noting_load(model: StreamedModel, layer_idx: int) -> torch.nn.Module:
        loaded.now.add(layer_idx)
        loaded.most = max(loaded.most, len(loaded.now))
        return load(model, layer_idx)

    def noting_release(model: StreamedModel, layer_idx: int) -> None:
        loaded.now.discard(layer_idx)
        release(model, layer_idx)

    monkeypatch.setattr(StreamedModel, "load_layer", noting_load)
    monkeypatch.setattr(StreamedModel, "release_layer", noting_release)
    return loaded


@pytest.fixture(scope="session")
def qwen2_calibration(
    tiny_checkpoints: dict[str, Path],
    random_windows: Callable[..., TokenWindows],
    tmp_path_factory: pytest.TempPathFactory,
) -> Calibration:
    """A calibration of the tiny Qwen2 on 12 windows of 20 tokens."""
    path = tmp_path_factory.mktemp("calibration") / "h"
    checkpoint = open_checkpoint(tiny_checkpoints["qwen2"])
    return calibrate_model(checkpoint, random_windows(12, 20), path, source="random", seed=0)
