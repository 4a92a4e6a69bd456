"""Train the demo model from the text of the running interpreter.

    python -m demo.train --work SCRATCH --out demo/model --minutes 55

The learning rate follows elapsed time, so the run always anneals to zero before its cap whatever the
machine. Checkpoints are atomic; the same command goes on from the last one.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM, Qwen2Tokenizer

from compress_core.text.stdlib import split_text
from demo.batches import Batches, encode, training_documents
from demo.model import VOCAB_SIZE, new_model, optimizers
from demo.report import write_record
from demo.tokenizer import train_tokenizer

log = logging.getLogger("demo.train")

ROWS = {"prose": 5, "source": 8, "tests": 3}
"""Windows of each pool in one batch."""
MUON_LR, ADAM_LR = 0.02, 4e-3
WARMUP, DECAY_FROM = 0.02, 0.3
"""Fractions of the run: the rate climbs until the one, stays, and falls linearly to zero from the other."""
WINDOW, WATCH_WINDOWS = 256, 32
CHECKPOINT_S, EVAL_STEPS, LOG_STEPS = 120.0, 200, 20


@dataclass
class Progress:
    """What a checkpoint holds besides weights and optimiser state."""

    step: int = 0
    elapsed_s: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


def rate_at(fraction: float) -> float:
    """Learning-rate factor at a fraction of the run's time: warm up, hold, anneal to zero."""
    climb = fraction / WARMUP
    fall = (1.0 - fraction) / (1.0 - DECAY_FROM)
    return max(0.0, min(climb, fall, 1.0))


def loss_on(model: Qwen2ForCausalLM, ids_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of each window's tokens after the first; ids (batch, window + 1)."""
    with torch.autocast(ids_BT.device.type, dtype=torch.bfloat16):
        logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), ids_BT[:, 1:].flatten())


def save_checkpoint(path: Path, model: torch.nn.Module, opts: list[torch.optim.Optimizer], progress: Progress) -> None:
    """Write beside the old checkpoint and rename over it: a kill at any moment leaves a whole one."""
    partial = path.with_suffix(".partial")
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in opts],
        "progress": vars(progress),
    }
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path, model: torch.nn.Module, opts: list[torch.optim.Optimizer]) -> Progress:
    """Restore weights and optimisers in place; a fresh :class:`Progress` where there is no checkpoint."""
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(opts, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    log.info("resumed at step %d", state["progress"]["step"])
    return Progress(**state["progress"])


@torch.no_grad()
def watch_loss(model: Qwen2ForCausalLM, ids_BT: torch.Tensor) -> float:
    """Held-out loss in nats a token, to watch the run; nothing is chosen by it."""
    model.eval()
    losses = [loss_on(model, chunk).item() for chunk in ids_BT.split(16)]
    model.train()
    return float(np.mean(losses))


def prepare(work: Path) -> tuple[PreTrainedTokenizerFast, dict[str, np.ndarray], dict[str, object]]:
    """Tokenizer (kept in ``work``, so that a restart uses the same), token streams, corpus statistics."""
    pools, copied = training_documents()
    kept = work / "tokenizer"
    if kept.exists():
        tokenizer = Qwen2Tokenizer.from_pretrained(kept)
    else:
        # A quarter of Lib/test is plenty for its vocabulary, and more would crowd out the prose.
        texts = [d.text for p in ("prose", "source") for d in pools[p]]
        texts += [d.text for d in pools["tests"][::4]]
        tokenizer = train_tokenizer(texts, VOCAB_SIZE)
        tokenizer.save_pretrained(kept)
    streams = {pool: encode(tokenizer, (d.text for d in docs)) for pool, docs in pools.items()}
    statistics: dict[str, object] = {
        "python": platform.python_version(),
        "documents": {pool: len(docs) for pool, docs in pools.items()},
        "bytes": {pool: sum(len(d.text.encode()) for d in docs) for pool, docs in pools.items()},
        "tokens": {pool: len(stream) for pool, stream in streams.items()},
        "left_out_as_copies_of_heldout": copied,
    }
    return tokenizer, streams, statistics


def set_rates(opts: list[torch.optim.Optimizer], factor: float) -> None:
    """Every group's rate as its peak (kept in the group as ``peak``) times ``factor``."""
    for optimizer in opts:
        for group in optimizer.param_groups:
            group.setdefault("peak", group["lr"])
            group["lr"] = group["peak"] * factor


def run_steps(
    args: argparse.Namespace,
    model: Qwen2ForCausalLM,
    batches: Batches,
    watch_BT: torch.Tensor,
    checkpoint: Path,
) -> Progress:
    """Train until the time is up, checkpointing on the way; on return the checkpoint is the final one."""
    opts = optimizers(model, muon_lr=MUON_LR, adam_lr=ADAM_LR)
    progress = load_checkpoint(checkpoint, model, opts)
    step_loss = torch.compile(loss_on) if args.compile else loss_on
    budget_s, tokens_a_step = args.minutes * 60, sum(batches.rows.values()) * batches.window
    started = time.monotonic() - progress.elapsed_s
    saved_at = progress.elapsed_s
    model.train()
    while progress.elapsed_s < budget_s:
        set_rates(opts, rate_at(progress.elapsed_s / budget_s))
        loss = step_loss(model, batches.at(progress.step).to(args.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        nats = loss.item()
        if not math.isfinite(nats):
            raise FloatingPointError(f"loss {nats} at step {progress.step}: lower the rates")
        progress.step += 1
        progress.elapsed_s = time.monotonic() - started
        if progress.step % LOG_STEPS == 0:
            left_min = (budget_s - progress.elapsed_s) / 60
            speed = progress.step * tokens_a_step / progress.elapsed_s
            log.info("step %d loss %.3f, %.1f min left, %.0f tokens/s", progress.step, nats, left_min, speed)
        if progress.step % EVAL_STEPS == 0:
            point = {
                "step": progress.step,
                "minutes": round(progress.elapsed_s / 60, 2),
                "train_loss": round(nats, 4),
                "heldout_loss": round(watch_loss(model, watch_BT), 4),
            }
            progress.curve.append(point)
            log.info("held-out loss %.4f", point["heldout_loss"])
        if progress.elapsed_s - saved_at > CHECKPOINT_S:
            save_checkpoint(checkpoint, model, opts, progress)
            saved_at = progress.elapsed_s
    save_checkpoint(checkpoint, model, opts, progress)
    return progress


def train(args: argparse.Namespace) -> None:
    """The whole run: prepare, train until the time is up, save the model and its record."""
    work, out = Path(args.work), Path(args.out)
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    tokenizer, streams, statistics = prepare(work)
    log.info("corpus %s", statistics["tokens"])
    watch = encode(tokenizer, [split_text("measure")])[: WATCH_WINDOWS * (WINDOW + 1)].astype(np.int64)
    watch_BT = torch.from_numpy(watch).reshape(WATCH_WINDOWS, WINDOW + 1).to(args.device)
    model = new_model(args.seed).to(args.device)
    batches = Batches(streams, ROWS, WINDOW, args.seed)
    progress = run_steps(args, model, batches, watch_BT, work / "checkpoint.pt")

    model.to("cpu", torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    training = {
        "seed": args.seed,
        "steps": progress.step,
        "tokens": progress.step * sum(ROWS.values()) * WINDOW,
        "minutes": round(progress.elapsed_s / 60, 1),
        "device": args.device,
        "threads": args.threads,
        "batch_windows": ROWS,
        "window": WINDOW,
        "rates": {"muon": MUON_LR, "adamw": ADAM_LR, "warmup": WARMUP, "decay_from": DECAY_FROM},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "corpus": statistics,
        "loss_curve": progress.curve,
    }
    write_record(out, training)
    log.info("saved; all done")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", required=True, help="scratch folder for checkpoint and tokenizer")
    parser.add_argument("--out", default="demo/model")
    parser.add_argument("--minutes", type=float, default=55.0, help="cap on training time, all restarts together")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="fuse with torch.compile (needs a C++ compiler)")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
