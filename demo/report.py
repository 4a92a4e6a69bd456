"""What the demo model is worth, and how much rounding hurts it: the figures of ``training.json``.

    python -m demo.report demo/model

A model that shrugs off 2-bit rounding would make a poor demo of spending bits with care, so the record
holds the perplexity after plain round-to-nearest at 4, 3 and 2 bits beside the original's.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from compress_core.text.stdlib import split_text
from demo.tokenizer import byte_lengths

RECORD = "training.json"
WINDOW = 256
RTN_BITS = (4, 3, 2)


@dataclass(frozen=True, slots=True)
class Score:
    """Held-out quality: ``nats`` a token, ``tokens`` predicted, and the ``bytes`` they stand for."""

    nats: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood a token."""
        return math.exp(self.nats)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, as perplexity is not."""
        return self.nats * self.tokens / self.bytes / math.log(2)


def windows(tokenizer: PreTrainedTokenizerFast, text: str, limit: int | None = None) -> torch.Tensor:
    """The text's tokens in consecutive windows, shape (windows, 256), int64; a shorter rest is dropped."""
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    count = min(len(ids) // WINDOW, limit or len(ids))
    return torch.tensor(ids[: count * WINDOW]).reshape(count, WINDOW)


@torch.no_grad()
def score(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, ids_NT: torch.Tensor) -> Score:
    """Predict every token but the first of each window; float32 throughout."""
    lengths = torch.tensor(byte_lengths(tokenizer))
    total = 0.0
    for ids_BT in ids_NT.split(16):
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
        total += F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum").item()
    targets = ids_NT[:, 1:]
    return Score(total / targets.numel(), targets.numel(), int(lengths[targets].sum()))


def round_to_nearest(weight_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """Symmetric rounding to ±(2^(bits-1) - 1) steps with one absmax scale an output row."""
    top = 2 ** (bits - 1) - 1
    scale_O1 = weight_OI.abs().amax(dim=1, keepdim=True) / top
    steps_OI = torch.where(scale_O1 > 0, weight_OI / scale_O1, torch.zeros_like(weight_OI)).round()
    return steps_OI * scale_O1


def rounded(model: torch.nn.Module, bits: int) -> torch.nn.Module:
    """A copy of the model with every decoder projection rounded; embeddings, norms, biases untouched."""
    clone = copy.deepcopy(model)
    for name, module in clone.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.weight.data = round_to_nearest(module.weight.data, bits)
    return clone


def evaluate(folder: Path, limit: int | None = None) -> dict[str, object]:
    """Held-out bits per byte and perplexity on the report split, original and rounded."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids_NT = windows(tokenizer, split_text("report"), limit)
    original = score(model, tokenizer, ids_NT)
    rtn = {bits: score(rounded(model, bits), tokenizer, ids_NT).perplexity for bits in RTN_BITS}
    return {
        "split": "report",
        "window": WINDOW,
        "tokens": original.tokens,
        "bytes": original.bytes,
        "bits_per_byte": round(original.bits_per_byte, 4),
        "perplexity": round(original.perplexity, 4),
        "rtn_perplexity": {str(bits): round(value, 4) for bits, value in rtn.items()},
        "rtn_ratio": {str(bits): round(value / original.perplexity, 4) for bits, value in rtn.items()},
    }


def write_record(folder: Path, training: dict[str, object] | None = None) -> dict[str, object]:
    """Write ``training.json``: the given training part (or the one already there) and fresh figures."""
    path = folder / RECORD
    if training is None:
        training = json.loads(path.read_text())["training"]
    record = {"training": training, "heldout": evaluate(folder)}
    path.write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    figures = write_record(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/model"))["heldout"]
    logging.getLogger("demo.report").info("%s", json.dumps(figures, indent=1))
