"""The shapes of a model, from config.json alone or from safetensors headers: no weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compress_core.calibrate.inputs import input_name
from compress_core.errors import UnsupportedArchitecture
from compress_core.matrix import NO_EXPERT, MatrixKey, MatrixSpec

#: bytes of a weight, by the names of config.json
_DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
#: families whose q, k and v have a bias without config.json saying so
_BIASED = ("qwen2", "qwen2_moe")
#: how config.json calls the number of routed experts
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class ModelShapes:
    """What a plan needs to know of a model."""

    name: str
    #: where the shapes come from, for people
    origin: str
    n_layers: int
    hidden_size: int
    vocab_size: int
    matrices: tuple[MatrixSpec, ...]
    #: of what stays as it is: embeddings, norms, biases, head
    fixed_bytes: int
    #: of the original weight files
    original_bytes: int
    #: of the routed experts, the share that a token goes through
    routed_share: float = 1.0

    @cached_property
    def n_weights(self) -> int:
        """Of the matrices."""
        return sum(spec.n_weights for spec in self.matrices)

    def layers(self) -> Iterable[tuple[MatrixSpec, ...]]:
        """The matrices layer by layer."""
        by_layer: dict[int, list[MatrixSpec]] = {}
        for spec in self.matrices:
            by_layer.setdefault(spec.key.layer_idx, []).append(spec)
        return (tuple(by_layer[layer]) for layer in sorted(by_layer))

    @cached_property
    def widest_layer(self) -> tuple[MatrixSpec, ...]:
        """The layer with most weights: what must fit."""
        return max(self.layers(), key=lambda specs: sum(spec.n_weights for spec in specs))

    @property
    def largest(self) -> MatrixSpec:
        """The matrix that takes most memory to compress: W four times, H three times."""
        return max(self.matrices, key=lambda spec: 4 * spec.n_weights + 3 * spec.in_features**2)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str, origin: str) -> ModelShapes:
        """The shapes that config.json promises, for layers of q, k, v, o and gate, up, down or of experts.

        Raises:
            UnsupportedArchitecture: a field is missing; the message names it.
        """
        return _FromConfig(_text_config(config)).shapes(name, origin)

    @classmethod
    def from_headers(
        cls,
        config: Mapping[str, Any],
        matrices: Iterable[MatrixSpec],
        *,
        fixed_bytes: int,
        original_bytes: int,
        name: str,
        origin: str,
    ) -> ModelShapes:
        """The shapes that the tensors have.

        Raises:
            UnsupportedArchitecture: config.json lacks hidden_size or vocab_size.
        """
        text = _text_config(config)
        specs = tuple(matrices)
        return cls(
            name=name,
            origin=origin,
            n_layers=1 + max(spec.key.layer_idx for spec in specs),
            hidden_size=_field(text, "hidden_size"),
            vocab_size=_field(text, "vocab_size"),
            matrices=specs,
            fixed_bytes=fixed_bytes,
            original_bytes=original_bytes,
            routed_share=_routed_share(text),
        )


def inputs_of(specs: Iterable[MatrixSpec]) -> dict[str, int]:
    """The distinct inputs of a layer's matrices, and their widths."""
    return {input_name(spec.key): spec.in_features for spec in specs}


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's part of a config that has several."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def _field(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedArchitecture(f"config.json has no {name}: its shapes cannot be told without the weights")
    return value


def _n_experts(config: Mapping[str, Any]) -> int:
    return next((int(config[name]) for name in _EXPERTS if config.get(name)), 0)


def _routed_share(config: Mapping[str, Any]) -> float:
    experts, chosen = _n_experts(config), int(config.get("num_experts_per_tok") or 0)
    return chosen / experts if experts and chosen else 1.0


@dataclass(frozen=True)
class _FromConfig:
    config: Mapping[str, Any]

    def shapes(self, name: str, origin: str) -> ModelShapes:
        n_layers = _field(self.config, "num_hidden_layers")
        hidden, vocab = _field(self.config, "hidden_size"), _field(self.config, "vocab_size")
        matrices = tuple(spec for layer in range(n_layers) for spec in self._layer(layer, hidden))
        tied = bool(self.config.get("tie_word_embeddings", False))
        routers = sum(hidden * self._experts for layer in range(n_layers) if self._is_sparse(layer))
        others = vocab * hidden * (1 if tied else 2) + (2 * n_layers + 1) * hidden + routers
        others += n_layers * sum(self._bias_widths())
        size = _DTYPE_BYTES.get(str(self.config.get("dtype") or self.config.get("torch_dtype") or "bfloat16"), 2)
        weights = sum(spec.n_weights for spec in matrices)
        return ModelShapes(
            name=name,
            origin=origin,
            n_layers=n_layers,
            hidden_size=hidden,
            vocab_size=vocab,
            matrices=matrices,
            fixed_bytes=size * others,
            original_bytes=size * (others + weights),
            routed_share=_routed_share(self.config),
        )

    def _attention(self, hidden: int) -> dict[str, tuple[int, int]]:
        heads = _field(self.config, "num_attention_heads")
        kv_heads = int(self.config.get("num_key_value_heads") or heads)
        head_dim = int(self.config.get("head_dim") or hidden // heads)
        q, kv = heads * head_dim, kv_heads * head_dim
        return {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}

    def _bias_widths(self) -> list[int]:
        biased = self.config.get("attention_bias", self.config.get("model_type") in _BIASED)
        attention = self._attention(_field(self.config, "hidden_size"))
        return [attention[name][0] for name in ("q", "k", "v")] if biased else []

    @property
    def _experts(self) -> int:
        return _n_experts(self.config)

    def _is_sparse(self, layer: int) -> bool:
        step = int(self.config.get("decoder_sparse_step") or 1)
        dense = self.config.get("mlp_only_layers") or ()
        return bool(self._experts) and layer not in dense and (layer + 1) % step == 0

    def _layer(self, layer: int, hidden: int) -> Iterable[MatrixSpec]:
        for projection, shape in self._attention(hidden).items():
            yield MatrixSpec(MatrixKey(layer, projection), *shape, "")
        if not self._is_sparse(layer):
            yield from _mlp(layer, NO_EXPERT, _field(self.config, "intermediate_size"), hidden)
            return
        shared = int(self.config.get("shared_expert_intermediate_size") or 0)
        if shared:
            yield from _mlp(layer, NO_EXPERT, shared, hidden)
        width = int(self.config.get("moe_intermediate_size") or _field(self.config, "intermediate_size"))
        for expert in range(self._experts):
            yield from _mlp(layer, expert, width, hidden)


def _mlp(layer: int, expert: int, width: int, hidden: int) -> Iterable[MatrixSpec]:
    for projection, shape in {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}.items():
        yield MatrixSpec(MatrixKey(layer, projection, expert), *shape, "")


def hessian_bytes(specs: Iterable[MatrixSpec]) -> int:
    """Bytes of the stored halves of H of every distinct input of one layer, float32."""
    return sum(4 * width * (width + 1) // 2 for width in inputs_of(specs).values())
