"""Shards: which file of a packed model holds what. A function of the model's structure alone. Torch-free.

Consecutive layers share a file as long as their matrices, uncompressed, stay within a limit. Tensors outside of the
layers lie in the first file, the head in the last. So the files, their headers and their uncompressed tensors are known
before anything is compressed, and a file can be written as soon as its layers are done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from compress_core.checkpoint.checkpoint import HEAD_TENSOR, SINGLE_FILE, Checkpoint
from compress_core.checkpoint.headers import TensorHeader
from compress_core.errors import ConfigError
from compress_core.matrix import MatrixKey, MatrixSpec

#: most bytes of uncompressed matrices in one file, unless a single layer has more
SHARD_BYTES = 8 * 10**9
#: stands where a projection's name does in the key of the head's matrix, which no calibration or sweep knows
HEAD = "head"


@dataclass(frozen=True)
class Shard:
    """One file."""

    name: str
    #: matrices, layer by layer
    specs: tuple[MatrixSpec, ...]
    #: tensors that stay as they are, by name
    others: tuple[TensorHeader, ...]

    @property
    def other_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.others)

    def layers(self) -> Iterator[tuple[int, tuple[MatrixSpec, ...]]]:
        """Each layer and its matrices; a compressed head is a layer after the last."""
        for layer_idx, specs in groupby(self.specs, key=lambda spec: spec.key.layer_idx):
            yield layer_idx, tuple(specs)


def plan_shards(checkpoint: Checkpoint, limit: int = SHARD_BYTES, *, head: bool = False) -> tuple[Shard, ...]:
    """The files of a packed model, in order; a single one is called ``model.safetensors``.

    Args:
        limit: bytes of uncompressed matrices that a file may hold.
        head: whether the head is compressed as well.

    Raises:
        ConfigError: the head is to be compressed, but is the token embedding, or no matrix.
    """
    groups: list[list[int]] = []
    filled = 0
    for layer_idx in range(checkpoint.n_layers):
        nbytes = sum(map(checkpoint.stored_nbytes, checkpoint.layer_matrices(layer_idx)))
        if not groups or filled + nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(layer_idx)
        filled += nbytes
    shard_of = {layer_idx: number for number, layers in enumerate(groups) for layer_idx in layers}
    specs: list[list[MatrixSpec]] = [[] for _ in groups]
    for spec in checkpoint.matrices():
        specs[shard_of[spec.key.layer_idx]].append(spec)
    others: list[list[TensorHeader]] = [[] for _ in groups]
    in_layer = re.compile(re.escape(checkpoint.layout.prefix) + r"\.(\d+)\.")
    for tensor in checkpoint.other_tensors:
        match = in_layer.match(tensor.name)
        if tensor.name == HEAD_TENSOR:
            if not head:
                others[-1].append(tensor)
        else:
            others[shard_of.get(int(match[1]), 0) if match else 0].append(tensor)
    if head:
        specs[-1].append(head_spec(checkpoint))
    names = [f"model-{n:05d}-of-{len(groups):05d}.safetensors" for n in range(1, len(groups) + 1)]
    return tuple(
        Shard(name, tuple(of_shard), tuple(kept))
        for name, of_shard, kept in zip([SINGLE_FILE] if len(groups) == 1 else names, specs, others, strict=True)
    )


def head_spec(checkpoint: Checkpoint) -> MatrixSpec:
    """The head as a matrix, in a layer after the last.

    Raises:
        ConfigError: the head is the token embedding, or no matrix.
    """
    if checkpoint.tied_head:
        raise ConfigError(
            f"{checkpoint.path} has no head of its own to compress: it is tied to the token embedding, "
            "which stays as it is"
        )
    tensor = checkpoint.tensors[HEAD_TENSOR]
    if len(tensor.shape) != 2:
        raise ConfigError(f"{HEAD_TENSOR} has shape {list(tensor.shape)}: only a matrix can be compressed")
    return MatrixSpec(MatrixKey(checkpoint.n_layers, HEAD), tensor.shape[0], tensor.shape[1], HEAD_TENSOR)
