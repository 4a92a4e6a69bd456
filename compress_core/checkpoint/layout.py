"""Find the decoder layers and their matrices by the structure of the tensor names, and compare with config.json."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from compress_core.checkpoint.beside import check_beside, check_parameter, check_routing
from compress_core.checkpoint.decoder_config import DecoderConfig
from compress_core.checkpoint.headers import TensorHeader
from compress_core.checkpoint.layer import find_matrices, projections_in
from compress_core.errors import CheckpointError, UnsupportedArchitecture
from compress_core.matrix import MatrixSpec

#: a number as module lists write it: without zeros in front, and no longer than any list is
_NUMBERED = re.compile(r"^(.*?)\.(0|[1-9][0-9]{0,17})\.(.+)$")


@dataclass(frozen=True, slots=True)
class DecoderLayout:
    """The numbered list of decoder layers (``prefix.0`` … ``prefix.(n_layers − 1)``) and the matrices in it."""

    prefix: str
    n_layers: int
    #: layer by layer; in a layer by expert (those without one first), then in the order of PROJECTIONS
    matrices: tuple[MatrixSpec, ...]

    def layers(self) -> Iterator[tuple[int, tuple[MatrixSpec, ...]]]:
        """Each layer's index and matrices."""
        for layer_idx, specs in groupby(self.matrices, key=lambda spec: spec.key.layer_idx):
            yield layer_idx, tuple(specs)


def find_layout(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> DecoderLayout:
    """Find the numbered module list that holds the most projections and, in each member, its matrices.

    Raises:
        UnsupportedArchitecture: no numbered list, a gap in it, or a layer whose matrices are not found (see
            ``find_matrices``).
        CheckpointError: a fused tensor has other rows than config.json promises.
    """
    members: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in tensors:
        if match := _NUMBERED.match(name):
            members[match[1]][int(match[2])].append(match[3])
    if not members:
        raise UnsupportedArchitecture("no decoder layers found: no tensor name has the form PREFIX.NUMBER.REST")
    # a vision tower may have more layers than the decoder, but not our projections
    prefix = max(members, key=lambda p: (_n_projections(members[p]), len(members[p]), p))
    layers = members[prefix]
    n_layers = max(layers) + 1
    matrices = []
    for layer_idx in range(n_layers):
        if layer_idx not in layers:
            raise UnsupportedArchitecture(f"layer {prefix}.{layer_idx} is missing: the layers are not numbered 0 … n−1")
        matrices += find_matrices(
            tensors, f"{prefix}.{layer_idx}", layer_idx, layers[layer_idx], DecoderConfig.of(config)
        )
    return DecoderLayout(prefix, n_layers, tuple(matrices))


def _n_projections(layers: Mapping[int, list[str]]) -> int:
    return max(len(projections_in(tails)) for tails in layers.values())


def check_config(config: Mapping[str, Any], layout: DecoderLayout, tensors: Mapping[str, TensorHeader]) -> None:
    """Compare what config.json says with the shapes that the tensors have.

    Raises:
        CheckpointError: they disagree; the message names the field and the tensor.
    """
    decoder = DecoderConfig.of(config)
    if decoder.n_layers != layout.n_layers:
        raise CheckpointError(
            f"config.json says num_hidden_layers = {decoder.n_layers}, the tensors hold {layout.n_layers} layers"
        )
    for layer_idx, specs in layout.layers():
        n_experts = 1 + max(spec.key.expert_idx for spec in specs)
        promised = decoder.n_experts(layer_idx)
        # a family may have its own way to say which layers are dense
        may_be_dense = n_experts == 0 and not decoder.tells_dense_layers
        if promised is not None and promised != n_experts and not may_be_dense:
            raise CheckpointError(
                f"config.json and tensors disagree: layer {layout.prefix}.{layer_idx} has {n_experts} experts, "
                f"config.json asks for {promised}"
            )
        check_routing(decoder, layer_idx, n_experts)
        for spec in specs:
            want = decoder.shape(spec.key, beside_experts=n_experts > 0)
            have = (spec.out_features, spec.in_features)
            if any(w is not None and w != h for w, h in zip(want, have, strict=True)):
                raise CheckpointError(
                    f"config.json and tensors disagree: {spec.name} has shape {list(have)}, "
                    f"config.json asks for {list(want)}"
                )
    embedding = next((t for name, t in tensors.items() if name.endswith("embed_tokens.weight")), None)
    if embedding is None:
        raise UnsupportedArchitecture("no tensor *.embed_tokens.weight: the token embedding was not found")
    vocab = decoder.vocab_size
    if vocab is not None and embedding.shape[:1] != (vocab,):
        raise CheckpointError(
            f"config.json says vocab_size = {vocab}, {embedding.name} has shape {list(embedding.shape)}"
        )
    check_parameter(embedding, (None, decoder.hidden_size))
    norm = tensors.get(f"{layout.prefix.rpartition('.')[0]}.norm.weight")
    if norm is not None:
        check_parameter(norm, (decoder.hidden_size,))
    check_beside(layout.prefix, dict(layout.layers()), tensors)
