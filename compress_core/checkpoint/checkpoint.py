"""Checkpoint: a local directory of safetensors and its config.json, checked, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compress_core.checkpoint.beside import check_parameter
from compress_core.checkpoint.decoder_config import DecoderConfig
from compress_core.checkpoint.fingerprint import fingerprint
from compress_core.checkpoint.headers import DTYPE_BYTES, TensorHeader, read_header
from compress_core.checkpoint.layout import DecoderLayout, check_config, find_layout
from compress_core.errors import CheckpointError, UnsupportedArchitecture
from compress_core.matrix import NO_EXPERT, MatrixKey, MatrixSpec
from compress_core.regular import read_regular

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEAD_TENSOR = "lm_head.weight"
#: of config.json or the index
_MOST_JSON_BYTES = 100_000_000
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Checkpoint:
    """A decoder's weights on disk; open one with :func:`open_checkpoint`."""

    path: Path
    config: dict[str, Any]
    #: every tensor of every shard
    tensors: Mapping[str, TensorHeader]
    layout: DecoderLayout

    @property
    def n_layers(self) -> int:
        return self.layout.n_layers

    def matrices(self) -> tuple[MatrixSpec, ...]:
        """The matrices that are compressed, layer by layer, in the order of the layout."""
        return self.layout.matrices

    def matrix(self, key: MatrixKey) -> MatrixSpec:
        """The matrix of this name.

        Raises:
            CheckpointError: the model has no such matrix.
        """
        try:
            return self._by_key[key]
        except KeyError:
            raise CheckpointError(f"{self.path} has no matrix {key}: {self._what_there_is(key)}") from None

    def _what_there_is(self, key: MatrixKey) -> str:
        if key.layer_idx not in self._by_layer:
            return f"it has {self.n_layers} layers, numbered from 0"
        siblings = [s.key for s in self.layer_matrices(key.layer_idx) if s.key.projection == key.projection]
        n_experts = sum(sibling.expert_idx != NO_EXPERT for sibling in siblings)
        experts = f"{n_experts} experts, numbered from 0" if n_experts else "no experts"
        beside = " and no matrix beside them" if len(siblings) == n_experts else ""
        return f"layer {key.layer_idx} has {experts}{beside}"

    def layer_matrices(self, layer_idx: int) -> tuple[MatrixSpec, ...]:
        """The matrices of one layer; none where there is no such layer."""
        return self._by_layer.get(layer_idx, ())

    def stored_nbytes(self, spec: MatrixSpec) -> int:
        """Bytes that a matrix takes in this checkpoint, uncompressed."""
        return spec.n_weights * DTYPE_BYTES[self.tensors[spec.tensor_name].dtype]

    @cached_property
    def _by_layer(self) -> dict[int, tuple[MatrixSpec, ...]]:
        return dict(self.layout.layers())

    @cached_property
    def _by_key(self) -> dict[MatrixKey, MatrixSpec]:
        return {spec.key: spec for spec in self.layout.matrices}

    @cached_property
    def tied_head(self) -> bool:
        """Whether the output head is the token embedding."""
        return HEAD_TENSOR not in self.tensors or bool(self.config.get("tie_word_embeddings"))

    @cached_property
    def other_tensors(self) -> tuple[TensorHeader, ...]:
        """Tensors that stay as they are (embeddings, norms, biases, routers, head), by name; a tied head counts once.

        Other modules' weights (a vision tower) are among them.
        """
        compressed = {spec.tensor_name for spec in self.layout.matrices}
        if self.tied_head:
            compressed.add(HEAD_TENSOR)
        return tuple(self.tensors[name] for name in sorted(self.tensors) if name not in compressed)

    @property
    def other_bytes(self) -> int:
        """Bytes of :attr:`other_tensors`."""
        return sum(tensor.nbytes for tensor in self.other_tensors)

    @property
    def matrix_bytes(self) -> int:
        """Bytes that the matrices take in this checkpoint, uncompressed."""
        return sum(map(self.stored_nbytes, self.layout.matrices))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over config and contents; reads every byte once, then remembers."""
        return fingerprint(self.config, self.tensors)


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a local checkpoint and check everything that headers can tell.

    Raises:
        CheckpointError: missing path or config.json, pickle checkpoint, truncated or corrupt file, index that lies,
            config that disagrees with the tensors.
        UnsupportedArchitecture: the decoder layers, a projection or an expert cannot be found.
    """
    root = Path(path)
    if not root.exists():
        raise CheckpointError(f"{root} does not exist: give the directory of a checkpoint")
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a directory: give the directory that holds config.json and safetensors")
    if not (root / SINGLE_FILE).exists() and not (root / INDEX_FILE).exists():
        _refuse_without_safetensors(root)
    config = _read_json(root / "config.json")
    if "quantization_config" in config:
        raise CheckpointError(f"{root} is already quantised (quantization_config): take the original weights")
    tensors = read_header(root / SINGLE_FILE).tensors if (root / SINGLE_FILE).exists() else _read_shards(root)
    layout = find_layout(config, tensors)
    check_config(config, layout, tensors)
    if elsewhere := [name for name in tensors if name.endswith(f".{HEAD_TENSOR}")]:
        raise UnsupportedArchitecture(f"{root}: the head is {elsewhere[0]}; expected {HEAD_TENSOR}, or a tied head")
    if config.get("tie_word_embeddings") is False and HEAD_TENSOR not in tensors:
        raise CheckpointError(f"{root}: config.json says the head is not tied, but there is no tensor {HEAD_TENSOR}")
    checkpoint = Checkpoint(root, config, tensors, layout)
    if not checkpoint.tied_head:
        decoder = DecoderConfig.of(config)
        check_parameter(tensors[HEAD_TENSOR], (decoder.vocab_size, decoder.hidden_size))
    return checkpoint


def check_checkpoint(path: Path | str) -> None:
    """Raise what :func:`open_checkpoint` raises; for callers that only want to know."""
    open_checkpoint(path)


def _refuse_without_safetensors(root: Path) -> None:
    pickles = sorted(found.name for pattern in _PICKLES for found in root.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{root / pickles[0]} is a pickle checkpoint: opening it could run code, so it is refused. Convert it to "
            "safetensors where you trust it (transformers: model.save_pretrained(directory)) and give that directory"
        )
    raise CheckpointError(f"{root} holds neither {SINGLE_FILE} nor {INDEX_FILE}: it is no checkpoint")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_regular(path, limit=_MOST_JSON_BYTES).decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def _read_shards(root: Path) -> dict[str, TensorHeader]:
    """All tensors of a sharded checkpoint, checked against the index in both directions.

    The index's ``total_size`` is not checked: widely used checkpoints have it wrong.
    """
    weight_map = _read_json(root / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{root / INDEX_FILE} has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{root / INDEX_FILE} names the shard {shard!r}: not a file beside the index")
        if not (root / shard).exists():
            raise CheckpointError(f"shard {shard} is missing from {root}: {INDEX_FILE} names it; download it again")
    tensors: dict[str, TensorHeader] = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in read_header(root / shard).tensors.items():
            if weight_map.get(name) != shard:
                claim = weight_map.get(name, "no shard")
                raise CheckpointError(f"{INDEX_FILE} of {root} lies: {name} is in {shard}, the index says {claim}")
            tensors[name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{INDEX_FILE} of {root} lies: it puts {name} into {shard}, which does not hold it")
    return tensors
