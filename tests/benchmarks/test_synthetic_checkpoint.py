"""The synthetic checkpoints: true shapes, whole, the same each time, and weights that look trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import synthetic_checkpoint
from benchmarks.synthetic_checkpoint import SHAPES, Shape, shape_of, write_tokenizer, write_weights
from compress_core.calibrate.run import calibrate_model
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.matrix import MatrixKey
from compress_core.text.stdlib import Document
from compress_core.text.tokens import TokenWindows, load_tokenizer


def small(layers: int) -> Shape:
    return Shape(
        hidden_size=64,
        intermediate_size=192,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        tie_word_embeddings=True,
        num_hidden_layers=layers,
    )


def test_a_checkpoint_is_whole_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_weights(tmp_path / name, small(2), seed=3)
    first, second = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    assert first.fingerprint == second.fingerprint
    assert len(first.matrices()) == 14
    assert {header.dtype for header in first.tensors.values()} == {"BF16"}
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 4
    assert index["metadata"]["total_size"] == sum(header.nbytes for header in first.tensors.values())
    with pytest.raises(FileExistsError, match="holds a checkpoint"):
        write_weights(tmp_path / "a", small(2))


def test_its_tokenizer_stays_inside_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [
        Document(f"text{n}", "docs", f"Return the day of week {n}, where Monday is {n % 7}.") for n in range(99)
    ]
    monkeypatch.setattr(synthetic_checkpoint, "iter_documents", lambda part, kinds: iter(documents))
    write_weights(tmp_path / "model", small(1))
    write_tokenizer(tmp_path / "model", 512)
    tokenizer = load_tokenizer(tmp_path / "model")
    assert len(tokenizer) <= 512
    text = "Return the day of the week, where Monday is 0. Émile"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_weights_look_trained_and_activations_are_correlated(tmp_path: Path) -> None:
    write_weights(tmp_path / "model", small(3))
    checkpoint = open_checkpoint(tmp_path / "model")
    w_OI = read_matrix(checkpoint, checkpoint.matrix(MatrixKey(1, "gate"))).float()
    rows_O, columns_I = w_OI.square().mean(1).sqrt(), w_OI.square().mean(0).sqrt()
    assert rows_O.max() > 2 * rows_O.median()
    assert columns_I.max() > 3 * columns_I.median()
    spectrum = torch.linalg.svdvals(w_OI)
    assert spectrum[0] > 2.5 * spectrum.median()
    ids = np.random.default_rng(0).integers(0, 512, size=(8, 64), dtype=np.int32)
    tokens = TokenWindows(ids, np.full(8, 64))
    calibration = calibrate_model(checkpoint, tokens, tmp_path / "hessians", source="", seed=0)
    for layer_idx in range(3):
        for projection in ("q", "o", "gate", "down"):
            h_II = calibration.hessian(MatrixKey(layer_idx, projection)).double()
            leading = torch.linalg.eigvalsh(h_II).flip(0)[: h_II.shape[0] // 8]
            assert 1e-3 < float(h_II.diagonal().mean()) < 100
            assert leading.sum() > 0.35 * h_II.trace()


@pytest.mark.parametrize(("name", "parameters"), [("1.5b", 1.54e9), ("7b", 7.62e9), ("72b", 72.7e9)])
def test_the_shapes_are_those_of_the_models(name: str, parameters: float) -> None:
    shape = shape_of(name)
    d, kv = shape.hidden_size, shape.num_key_value_heads * shape.head_width
    layer = 2 * d * d + 2 * d * kv + 3 * d * shape.intermediate_size
    tables = (1 if shape.tie_word_embeddings else 2) * shape.vocab_size * d
    assert shape.num_hidden_layers * layer + tables == pytest.approx(parameters, rel=0.005)
    assert SHAPES[name] == shape
    assert shape_of(name, layers=1, vocab=1000) == Shape(**{**vars(shape), "num_hidden_layers": 1, "vocab_size": 1000})
