"""Shapes from config.json alone: the public models, families, experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compress_core.errors import UnsupportedArchitecture
from compress_core.plan.shapes import ModelShapes, hessian_bytes

MODELS = Path(__file__).resolve().parents[3] / "configs" / "models"
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 100,
    "dtype": "float32",
}


def known(name: str) -> ModelShapes:
    entry = json.loads((MODELS / f"{name}.json").read_text())
    return ModelShapes.from_config(entry["config"], name, "test")


def shapes(**fields: Any) -> ModelShapes:
    return ModelShapes.from_config(TINY | fields, "tiny", "test")


@pytest.mark.parametrize(
    ("name", "n_matrices", "original_gb", "largest"),
    [
        ("qwen2-1.5b", 196, 3.0874, (1536, 8960)),
        ("qwen2-7b", 196, 15.2312, (3584, 18944)),
        ("qwen2-72b", 560, 145.4124, (8192, 29568)),
    ],
)
def test_the_public_models_have_their_sizes(
    name: str, n_matrices: int, original_gb: float, largest: tuple[int, int]
) -> None:
    model = known(name)
    assert len(model.matrices) == n_matrices
    assert model.original_bytes / 1e9 == pytest.approx(original_gb, abs=1e-4)
    assert (model.largest.out_features, model.largest.in_features) == largest


def test_the_72b_has_what_the_plan_says() -> None:
    model = known("qwen2-72b")
    assert model.n_weights * 2 / 8 / 1e9 == pytest.approx(17.55, abs=0.01)
    assert model.fixed_bytes / 1e9 == pytest.approx(4.98, abs=0.02)
    halves = sum(hessian_bytes(layer) for layer in model.layers())
    assert halves / 1e9 == pytest.approx(172, abs=1)


def test_the_tensors_of_transformers_have_the_bytes_that_the_config_promises() -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(**TINY, tie_word_embeddings=False, max_position_embeddings=64)
        )
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    assert shapes(model_type="qwen2", tie_word_embeddings=False).original_bytes == nbytes


def test_experts_are_matrices_of_their_own() -> None:
    model = shapes(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=24,
        mlp_only_layers=[0],
    )  # fmt: skip
    first, second = model.layers()
    assert len(first) == 7
    assert len(second) == 4 + 3 * (1 + 4)
    assert {spec.key.expert_idx for spec in second} == {-1, 0, 1, 2, 3}
    assert model.routed_share == 0.5


def test_the_decoder_of_a_config_with_several_parts_counts() -> None:
    nested = {"model_type": "gemma3", "text_config": TINY | {"head_dim": 16}}
    q = next(iter(ModelShapes.from_config(nested, "nested", "test").matrices))
    assert (q.out_features, q.in_features) == (64, 32)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"])
def test_a_missing_field_is_named(field: str) -> None:
    lacking = {name: value for name, value in TINY.items() if name != field}
    with pytest.raises(UnsupportedArchitecture, match=field):
        ModelShapes.from_config(lacking, "tiny", "test")
