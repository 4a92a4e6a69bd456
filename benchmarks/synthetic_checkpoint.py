"""Write a checkpoint of a true Qwen2 shape with few layers: random weights that look like trained ones.

    python -m benchmarks.synthetic_checkpoint 7b FOLDER [--layers 2] [--vocab 152064] [--seed 0]

bfloat16 safetensors in shards (embedding, each layer, norm and head), their index, config.json, and a byte-level
tokenizer learnt from the standard library's documentation. The same arguments give the same bytes. Tensors are made
and written a strip of rows at a time, so that memory is a strip, whatever the model.

What makes the weights realistic enough to calibrate and compress:

- a matrix is some hundred directions of decaying strength and noise, with rows of unequal norms and a few columns that
  are four times as large as the others;
- embeddings, ``o_proj`` and ``down_proj`` write into the residual stream along the same directions, so that activations
  are correlated and H has a decaying spectrum; four channels of the stream are ten times as large as the others;
- every matrix keeps the root mean square of a unit input up to its gain, and what is written into the stream is small
  beside 1: since layers read it through RMSNorm, it grows by a sum and not by a product.

Shapes: O = out_features, I = in_features, D = hidden width, K = directions, R = rows of a strip.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress_core.checkpoint.writer import Entry, encode_header
from compress_core.text.stdlib import iter_documents
from demo.tokenizer import train_tokenizer

#: directions of a matrix, and how their strength falls
DIRECTIONS = 256
_DECAY = 0.6
#: share of a matrix's energy in them; the rest is noise
_SHARE = 0.4
#: spread of the logarithm of row norms and column norms, and the large columns
_ROW_SPREAD, _COLUMN_SPREAD = 0.4, 0.15
_LARGE_COLUMNS, _LARGE = 1 / 500, 4.0
#: channels of the residual stream that are large
_LARGE_CHANNELS, _LARGE_CHANNEL = 4, 10.0
#: root mean square of the embeddings, and of what each matrix writes into the stream for a unit input (others: 1)
_EMBEDDING = 0.02
_GAIN = {"o_proj": 0.2, "down_proj": 0.3}
#: standard deviations of the biases
_BIAS = {"q_proj": 0.5, "k_proj": 1.0, "v_proj": 0.05}
#: entries made at once
_STRIP = 1 << 22
_LONGEST_VOCABULARY = 8192


@dataclass(frozen=True)
class Shape:
    """A Qwen2 of some size; the fields are named as in config.json."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    num_hidden_layers: int

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def to_config(self) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "eos_token_id": 0,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": 131072,
            "max_window_layers": self.num_hidden_layers,
            "model_type": "qwen2",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": self.vocab_size,
        }


#: by name, with all their layers
SHAPES = {
    "1.5b": Shape(1536, 8960, 12, 2, 151936, True, 28),
    "7b": Shape(3584, 18944, 28, 4, 152064, False, 28),
    "72b": Shape(8192, 29568, 64, 8, 152064, False, 80),
}


@dataclass(frozen=True)
class _Stream:
    """The directions (K, D) that are written into the residual stream, of unit root mean square, and its large
    channels."""

    directions_KD: Tensor
    large_D: Tensor


def write_weights(folder: Path, shape: Shape, *, seed: int = 0) -> None:
    """Write the checkpoint into ``folder``, without a tokenizer.

    Raises:
        FileExistsError: it holds one already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} holds a checkpoint already")
    stream = _stream(shape, seed)
    shards = [[Entry("model.embed_tokens.weight", "BF16", (shape.vocab_size, shape.hidden_size))]]
    shards += [_layer_entries(shape, layer_idx) for layer_idx in range(shape.num_hidden_layers)]
    shards.append([Entry("model.norm.weight", "BF16", (shape.hidden_size,))])
    if not shape.tie_word_embeddings:
        shards[-1].append(Entry("lm_head.weight", "BF16", (shape.vocab_size, shape.hidden_size)))
    files = {f"model-{i:05d}-of-{len(shards):05d}.safetensors": entries for i, entries in enumerate(shards, 1)}
    for name, entries in files.items():
        with (folder / name).open("wb") as file:
            file.write(encode_header(entries, {"format": "pt"}))
            for entry in entries:
                for strip in _strips(entry, stream, seed):
                    file.write(strip.to(torch.bfloat16).view(torch.uint8).numpy().data)
    index = {
        "metadata": {"total_size": sum(entry.nbytes for entries in shards for entry in entries)},
        "weight_map": {entry.name: name for name, entries in files.items() for entry in entries},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    # last: what has it is whole
    (folder / "config.json").write_text(json.dumps(shape.to_config(), indent=1) + "\n")


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a tokenizer with ids below ``vocab_size``, for text of the standard library."""
    documents = (document.text for document in iter_documents("train", kinds=("docs",)))
    train_tokenizer(documents, min(_LONGEST_VOCABULARY, vocab_size)).save_pretrained(folder)


def _layer_entries(shape: Shape, layer_idx: int) -> list[Entry]:
    d, f = shape.hidden_size, shape.intermediate_size
    kv = shape.num_key_value_heads * shape.head_width
    sizes = {
        "input_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (d, d),
        "self_attn.q_proj.bias": (d,),
        "self_attn.k_proj.weight": (kv, d),
        "self_attn.k_proj.bias": (kv,),
        "self_attn.v_proj.weight": (kv, d),
        "self_attn.v_proj.bias": (kv,),
        "self_attn.o_proj.weight": (d, d),
        "post_attention_layernorm.weight": (d,),
        "mlp.gate_proj.weight": (f, d),
        "mlp.up_proj.weight": (f, d),
        "mlp.down_proj.weight": (d, f),
    }
    return [Entry(f"model.layers.{layer_idx}.{name}", "BF16", size) for name, size in sizes.items()]


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed((seed << 32) + zlib.crc32(name.encode()))


def _stream(shape: Shape, seed: int) -> _Stream:
    g = _generator(seed, "residual stream")
    directions_KD = torch.randn(min(DIRECTIONS, shape.hidden_size // 4), shape.hidden_size, generator=g)
    large_D = torch.ones(shape.hidden_size)
    large_D[torch.randperm(shape.hidden_size, generator=g)[:_LARGE_CHANNELS]] = _LARGE_CHANNEL
    return _Stream(directions_KD, large_D)


def _strips(entry: Entry, stream: _Stream, seed: int) -> Iterator[Tensor]:
    """The tensor of that name in strips of rows, float32."""
    g = _generator(seed, entry.name)
    module, _, leaf = entry.name.rpartition(".")
    module = module.rpartition(".")[2]
    if leaf == "bias":
        yield _BIAS[module] * torch.randn(entry.shape, generator=g)
    elif "norm" in module:
        # what is large in the stream is read with a small weight, though it stays large
        yield torch.exp(0.3 * torch.randn(entry.shape, generator=g)) / stream.large_D.sqrt()
    elif module == "embed_tokens":
        yield from _embedding(entry.shape, stream, g)
    else:
        yield from _matrix(
            entry.shape, stream if module in ("o_proj", "down_proj") else None, _GAIN.get(module, 1.0), g
        )


def _strengths(count: int) -> Tensor:
    """Falling, with squares that sum to the directions' share."""
    strengths_K = torch.arange(1, count + 1) ** -_DECAY
    return strengths_K * math.sqrt(_SHARE) / strengths_K.norm()


def _spread(count: int, deviation: float, g: torch.Generator) -> Tensor:
    """Log-normal, of unit root mean square."""
    return torch.exp(deviation * torch.randn(count, generator=g) - deviation**2)


def _embedding(shape: tuple[int, ...], stream: _Stream, g: torch.Generator) -> Iterator[Tensor]:
    strengths_K = _strengths(stream.directions_KD.shape[0])
    for rows in _row_counts(shape):
        strip_RD = (torch.randn(rows, len(strengths_K), generator=g) * strengths_K) @ stream.directions_KD
        strip_RD += math.sqrt(1 - _SHARE) * torch.randn(strip_RD.shape, generator=g)
        yield strip_RD.mul_(_EMBEDDING * _spread(rows, _ROW_SPREAD, g)[:, None]).mul_(stream.large_D)


def _matrix(shape: tuple[int, ...], writes: _Stream | None, gain: float, g: torch.Generator) -> Iterator[Tensor]:
    """Strips of W; the outputs of one that ``writes`` into the residual stream lie along its directions."""
    n_in = shape[1]
    count = min(DIRECTIONS, *(size // 4 for size in shape)) if writes is None else writes.directions_KD.shape[0]
    strengths_K = _strengths(count)
    right_KI = torch.randn(count, n_in, generator=g) * strengths_K[:, None]
    column_I = _spread(n_in, _COLUMN_SPREAD, g)
    column_I[torch.randperm(n_in, generator=g)[: math.ceil(_LARGE_COLUMNS * n_in)]] *= _LARGE
    column_I *= gain / math.sqrt(n_in)
    first = 0
    for rows in _row_counts(shape):
        at = slice(first, first + rows)
        first += rows
        left_RK = torch.randn(rows, count, generator=g) if writes is None else writes.directions_KD[:, at].T
        row_R = _spread(rows, _ROW_SPREAD, g)
        if writes is not None:
            row_R *= writes.large_D[at]
        noise_RI = math.sqrt(1 - _SHARE) * torch.randn(rows, n_in, generator=g)
        yield noise_RI.addmm_(left_RK, right_KI).mul_(row_R[:, None]).mul_(column_I)


def _row_counts(shape: tuple[int, ...]) -> Iterator[int]:
    step = max(1, _STRIP // shape[1])
    for first in range(0, shape[0], step):
        yield min(step, shape[0] - first)


def shape_of(name: str, *, layers: int | None = None, vocab: int | None = None) -> Shape:
    """A named shape with other numbers of layers and of tokens."""
    values = {**vars(SHAPES[name])}
    values["num_hidden_layers"] = layers or values["num_hidden_layers"]
    values["vocab_size"] = vocab or values["vocab_size"]
    return Shape(**values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, help="default: the model's own")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shape = shape_of(arguments.shape, layers=arguments.layers, vocab=arguments.vocab)
    write_weights(arguments.folder, shape, seed=arguments.seed)
    write_tokenizer(arguments.folder, shape.vocab_size)


if __name__ == "__main__":
    main()
