"""How fast packed models run: decoded on the fly, decoded once, and the original, side by side.

    python -m benchmarks.serve [--model demo/model] [--rounds 5] [--write]

Two tables. The first loads a model as anyone would (``from_pretrained``) in the three forms and measures prefill and
decode in tokens per CPU second, and the memory of parameters and buffers. The second measures single layers of
Qwen2-1.5B's shapes, where the numbers do not depend on what is compressed: their codes are random.

The forms take turns within each round, so that a busy machine slows all of them alike; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from compress_core.checkpoint import open_checkpoint
from compress_core.config import CompressionConfig
from compress_core.nbytes import packed_parts
from compress_core.pack import CompressedLinear, write_packed_model

OUT = Path("benchmarks/results/serve-cpu.md")
PREFILL_TOKENS = 512
PROMPT_TOKENS = 64
DECODE_TOKENS = 32
#: how the demo model is packed: quickly (few states and iterations), since what counts here is the time to decode
CONFIGS = (
    CompressionConfig(b_q=2, codebook="trellis", states=256),
    CompressionConfig(b_q=4, codebook="trellis", states=256),
    CompressionConfig(b_q=2, codebook="e8"),
    CompressionConfig(b_q=3, rank=16, codebook="e8", iterations=1),
    CompressionConfig(b_q=4, codebook="scalar"),
    CompressionConfig(b_q=4, codebook="rtn"),
)
#: the table of layers has the default number of states
LAYER_CONFIGS = (
    CompressionConfig(b_q=2, codebook="trellis"),
    CompressionConfig(b_q=4, codebook="trellis"),
    CompressionConfig(b_q=2, codebook="e8"),
    CompressionConfig(b_q=3, rank=64, codebook="e8"),
    CompressionConfig(b_q=4, codebook="scalar"),
    CompressionConfig(b_q=4, codebook="rtn"),
)
#: (out, in) of Qwen2-1.5B: q and o, gate and up, down
LAYERS = ((1536, 1536), (8960, 1536), (1536, 8960))
TOKENS = (1, 16, 512)


@dataclass(frozen=True)
class Timing:
    """Seconds of CPU time of each form in each round."""

    seconds: dict[str, list[float]]

    def best(self, form: str) -> float:
        return min(self.seconds[form])

    def ratio(self, form: str, to: str) -> float:
        """Median over rounds of the speed of ``form`` in units of that of ``to``."""
        return median(b / a for a, b in zip(self.seconds[form], self.seconds[to], strict=True))


def measure(forms: dict[str, Callable[[], object]], rounds: int) -> Timing:
    """Run all forms in turn, once to warm up, then ``rounds`` times."""
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(rounds + 1):
        for form, run in forms.items():
            started = time.process_time()
            run()
            if number:
                seconds[form].append(time.process_time() - started)
    return Timing(seconds)


@torch.inference_mode()
def prefill(model: nn.Module, ids: torch.Tensor) -> object:
    return model(ids, use_cache=True, logits_to_keep=1).past_key_values


@torch.inference_mode()
def decode(model: nn.Module, prompt: torch.Tensor) -> None:
    """Greedy decoding of a few tokens after a short prompt, whose prefill is part of the time."""
    past = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
    token = prompt[:, -1:]
    for _ in range(DECODE_TOKENS):
        out = model(token, past_key_values=past, use_cache=True)
        past, token = out.past_key_values, out.logits[:, -1:].argmax(-1)


def memory(model: nn.Module) -> int:
    """Bytes of parameters and buffers; a tied head counts once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.nbytes for t in tensors.values())


def model_rows(path: Path, rounds: int) -> list[str]:
    checkpoint = open_checkpoint(path)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, checkpoint.config["vocab_size"], (1, PREFILL_TOKENS), generator=generator)
    prompt = ids[:, :PROMPT_TOKENS]
    original = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    rows = []
    for config in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "packed"
            items = {s.key: config.clamped(s.out_features, s.in_features) for s in checkpoint.matrices()}
            write_packed_model(checkpoint, None, items, out)
            packed = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
            once = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, dequantize=True)
        forms = {"original": original, "on the fly": packed, "decoded once": once}
        fill = measure({name: lambda m=model: prefill(m, ids) for name, model in forms.items()}, rounds)
        steps = measure({name: lambda m=model: decode(m, prompt) for name, model in forms.items()}, rounds)
        for name, model in forms.items():
            rows.append(
                f"| {config} | {name} | {PREFILL_TOKENS / fill.best(name):,.0f} | {fill.ratio(name, 'original'):.2f}× "
                f"| {DECODE_TOKENS / steps.best(name):,.0f} | {steps.ratio(name, 'original'):.2f}× "
                f"| {memory(model) / 1e6:.2f} |"
            )
            print(rows[-1], flush=True)
    return rows


def random_layer(config: CompressionConfig, out_features: int, in_features: int) -> CompressedLinear:
    """A layer with random codes: any bytes are codes, and scales of one are numbers."""
    linear = CompressedLinear(config, in_features, out_features)
    generator = torch.Generator().manual_seed(0)
    pieces = []
    for part in packed_parts(config, out_features, in_features):
        if part.dtype == "U8":
            pieces.append(torch.randint(0, 255, part.shape, generator=generator, dtype=torch.uint8).reshape(-1))
        else:
            ones = torch.ones(part.shape, dtype=torch.float32 if part.dtype == "F32" else torch.float16)
            pieces.append(ones.reshape(-1).view(torch.uint8))
    linear.packed = torch.cat(pieces)
    return linear


def layer_rows(rounds: int) -> list[str]:
    rows = []
    for out_features, in_features in LAYERS:
        for config in LAYER_CONFIGS:
            packed = random_layer(config, out_features, in_features)
            once = packed.dequantized(torch.float32)
            cells = []
            for tokens in TOKENS:
                x = torch.randn(1, tokens, in_features, generator=torch.Generator().manual_seed(1))
                with torch.inference_mode():
                    timing = measure({"on the fly": lambda: packed(x), "decoded once": lambda: once(x)}, rounds)  # noqa: B023
                fast, dense = timing.best("on the fly"), timing.best("decoded once")
                cells.append(
                    f"{1e3 * fast:.1f} / {1e3 * dense:.1f} ({timing.ratio('on the fly', 'decoded once'):.2f}×)"
                )
            rows.append(
                f"| {out_features} × {in_features} | {config} | {' | '.join(cells)} "
                f"| {memory(packed) / 1e6:.2f} / {memory(once) / 1e6:.2f} |"
            )
            print(rows[-1], flush=True)
    return rows


def report(path: Path, models: list[str], layers: list[str]) -> str:
    return "\n".join(
        [
            "# Packed models at work on the CPU",
            "",
            f"{datetime.datetime.now(datetime.UTC).date()}; Python {platform.python_version()}, torch "
            f"{torch.__version__}, transformers {transformers.__version__}; one thread of {os.cpu_count()} shared "
            f"cores ({platform.machine()}). `python -m benchmarks.serve --write`. CPU seconds; the best of the rounds, "
            "ratios are medians over rounds in which the forms took turns.",
            "",
            f"## {path.name if path.name != 'model' else 'The demo model'}, float32",
            "",
            f"Prefill: 1 × {PREFILL_TOKENS} tokens. Decode: {DECODE_TOKENS} tokens, one at a time, after a prompt of "
            f"{PROMPT_TOKENS} (its time is included). Memory: parameters and buffers.",
            "",
            "| config | form | prefill, tokens/s | of the original | decode, tokens/s | of the original | memory, MB |",
            "|---|---|---|---|---|---|---|",
            *models,
            "",
            "## Single layers of Qwen2-1.5B's shapes, float32, random codes",
            "",
            "Milliseconds of one forward pass, on the fly / decoded once (speed on the fly in units of decoded once).",
            "",
            "| out × in | config | " + " | ".join(f"{t} token{'s' if t > 1 else ''}" for t in TOKENS)
            + " | memory, MB |",
            "|---|---|" + "---|" * (len(TOKENS) + 1),
            *layers,
            "",
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("demo/model"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {OUT}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    layers = layer_rows(args.rounds)
    text = report(args.model, model_rows(args.model, args.rounds), layers)
    if args.write:
        OUT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
