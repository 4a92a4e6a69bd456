"""Find the decoder layers and their seven projections by the structure of the tensor names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress_core.checkpoint.headers import FLOAT_DTYPES, TensorHeader
from compress_core.errors import CheckpointError, UnsupportedArchitecture
from compress_core.matrix import PROJECTIONS, MatrixKey, MatrixSpec

_NUMBERED = re.compile(r"^(.*?)\.(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True)
class DecoderLayout:
    """The numbered list of decoder layers (``prefix.0`` … ``prefix.(n_layers − 1)``) and the matrices in it."""

    prefix: str
    n_layers: int
    matrices: tuple[MatrixSpec, ...]


def find_layout(tensors: Mapping[str, TensorHeader]) -> DecoderLayout:
    """Find the longest numbered module list and, in each member, ``q_proj`` … ``down_proj``.

    Raises:
        UnsupportedArchitecture: no numbered list, a gap in it, a projection that is missing or there more than
            once; the message names it.
    """
    members: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in tensors:
        if match := _NUMBERED.match(name):
            members[match[1]][int(match[2])].append(name)
    if not members:
        raise UnsupportedArchitecture("no decoder layers found: no tensor name has the form PREFIX.NUMBER.REST")
    # a vision tower may have more layers than the decoder, but not our projections
    prefix = max(members, key=lambda p: (_n_projections(members[p]), len(members[p]), p))
    layers = members[prefix]
    n_layers = max(layers) + 1
    for layer_idx in range(n_layers):
        if layer_idx not in layers:
            raise UnsupportedArchitecture(f"layer {prefix}.{layer_idx} is missing: the layers are not numbered 0 … n−1")
    matrices = []
    for layer_idx in range(n_layers):
        for projection in PROJECTIONS:
            tensor = _find_projection(tensors, f"{prefix}.{layer_idx}", layers[layer_idx], projection)
            out_features, in_features = tensor.shape
            matrices.append(MatrixSpec(MatrixKey(layer_idx, projection), out_features, in_features, tensor.name))
    return DecoderLayout(prefix, n_layers, tuple(matrices))


def _n_projections(layers: Mapping[int, list[str]]) -> int:
    first = layers[min(layers)]
    return sum(any(name.endswith(f".{projection}_proj.weight") for name in first) for projection in PROJECTIONS)


def _find_projection(
    tensors: Mapping[str, TensorHeader], layer: str, names: list[str], projection: str
) -> TensorHeader:
    suffix = f".{projection}_proj.weight"
    found = [name for name in names if name.endswith(suffix)]
    if not found:
        weights = sorted(name.removeprefix(f"{layer}.") for name in names if len(tensors[name].shape) == 2)
        raise UnsupportedArchitecture(
            f"projection {projection!r} not found: no tensor {layer}.*{suffix}; "
            f"the layer's matrices are {', '.join(weights) or 'none'}"
        )
    if len(found) > 1:
        raise UnsupportedArchitecture(
            f"projection {projection!r} is there {len(found)} times in {layer} ({found[0]}, {found[1]}, …): "
            "mixture-of-experts checkpoints are not supported"
        )
    tensor = tensors[found[0]]
    if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.dtype not in FLOAT_DTYPES:
        raise UnsupportedArchitecture(
            f"{tensor.name} has dtype {tensor.dtype} and shape {list(tensor.shape)}: expected a matrix of "
            f"{', '.join(FLOAT_DTYPES)}; take the unquantised checkpoint"
        )
    return tensor


def check_config(config: Mapping[str, Any], layout: DecoderLayout, tensors: Mapping[str, TensorHeader]) -> None:
    """Compare what config.json says with the shapes that the tensors have.

    Raises:
        CheckpointError: they disagree; the message names the field and the tensor.
    """
    if "num_hidden_layers" not in config:
        raise CheckpointError("config.json has no num_hidden_layers: it does not describe a decoder")
    if config["num_hidden_layers"] != layout.n_layers:
        raise CheckpointError(
            f"config.json says num_hidden_layers = {config['num_hidden_layers']}, "
            f"the tensors hold {layout.n_layers} layers"
        )
    hidden = config.get("hidden_size")
    heads = config.get("num_attention_heads")
    head_dim = config.get("head_dim") or (hidden // heads if hidden and heads else None)
    kv_heads = config.get("num_key_value_heads") or heads
    q_out = heads * head_dim if heads and head_dim else None
    kv_out = kv_heads * head_dim if kv_heads and head_dim else None
    ffn = config.get("intermediate_size")
    expected = {
        "q": (q_out, hidden),
        "k": (kv_out, hidden),
        "v": (kv_out, hidden),
        "o": (hidden, q_out),
        "gate": (ffn, hidden),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }
    for spec in layout.matrices:
        want = expected[spec.key.projection]
        have = (spec.out_features, spec.in_features)
        if any(w is not None and w != h for w, h in zip(want, have, strict=True)):
            raise CheckpointError(
                f"config.json and tensors disagree: {spec.tensor_name} has shape {list(have)}, "
                f"config.json asks for {list(want)}"
            )
    embedding = next((t for name, t in tensors.items() if name.endswith("embed_tokens.weight")), None)
    if embedding is None:
        raise UnsupportedArchitecture("no tensor *.embed_tokens.weight: the token embedding was not found")
    vocab = config.get("vocab_size")
    if vocab is not None and embedding.shape[0] != vocab:
        raise CheckpointError(f"config.json says vocab_size = {vocab}, {embedding.name} has {embedding.shape[0]} rows")
