"""evaluate: perplexity of the original or of a packed model, with the loss of every window."""

from __future__ import annotations

import time
from typing import Any

from compress_core import NUMERICS_VERSION
from compress_core.checkpoint import Checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.evaluate.interval import perplexity_interval
from compress_core.evaluate.perplexity import evaluate_perplexity
from compress_core.pack.layout import stored_bytes
from compress_core.pack.reader import PackedModel
from compress_core.stream.model import WeightSource
from compress_core.text import split_text
from compress_core.text.tokens import fixed_windows
from results_db.errors import NotFound
from results_db.params import EvaluateParams
from results_db.recording import find_evaluation, record_evaluation
from results_db.tables import Artefact, Compression, Model
from worker.context import JobContext
from worker.errors import MissingInput
from worker.inputs import content_hash, open_model, text_source

_DTYPE = "float32"


def run(params: EvaluateParams, context: JobContext) -> dict[str, Any]:
    """Result: {evaluation_id, value, reused}."""
    model, checkpoint = open_model(context, params.model_id)
    context.progress.begin(checkpoint.n_layers + 1, message="reading the text")
    text = split_text(text_source(context, params.text), params.split)
    windows = fixed_windows(checkpoint.path, text, params.windows.length, limit=params.windows.count)
    key = content_hash(
        {
            "model": checkpoint.fingerprint,
            "compression": params.compression_id,
            "task": params.task,
            "text": params.text.name,
            "split": params.split,
            "tokens": windows.sha256,
            "dtype": _DTYPE,
            "numerics": NUMERICS_VERSION,
            "device": context.device.kind,
        }
    )
    known = context.recorder.read(lambda session: find_evaluation(session, key))
    if known is not None:
        return {"evaluation_id": known.id, "value": known.value, "reused": True}
    weights = weights_of(context, model, checkpoint, params.compression_id)
    began = time.perf_counter()
    losses = evaluate_perplexity(
        weights,
        windows,
        device=context.device.torch_name,
        dtype=_DTYPE,
        batch_tokens=context.batch_tokens,
        progress=context.progress,
    )
    seconds = time.perf_counter() - began
    interval = perplexity_interval(losses.nll, losses.n_tokens)
    items = [(float(nll), int(n)) for nll, n in zip(losses.nll, losses.n_tokens, strict=True)]
    evaluation_id = context.recorder.write(
        lambda session, claim: record_evaluation(
            session,
            claim,
            items=items,
            model_id=model.id,
            compression_id=params.compression_id,
            content_hash=key,
            task=params.task,
            dataset=params.text.name,
            split=params.split,
            metric="ppl",
            value=losses.perplexity,
            ci_low=interval.low,
            ci_high=interval.high,
            nll=losses.nats_per_token,
            bits_per_byte=losses.bits_per_byte,
            n_items=windows.n_windows,
            n_tokens=int(losses.n_tokens.sum()),
            token_hash=windows.sha256,
            text=params.text.model_dump(exclude_none=True),
            numerics_version=NUMERICS_VERSION,
            device_kind=context.device.kind,
            seconds=seconds,
        )
    )
    return {"evaluation_id": evaluation_id, "value": losses.perplexity, "reused": False}


def weights_of(context: JobContext, model: Model, checkpoint: Checkpoint, compression_id: str | None) -> WeightSource:
    """The original weights, or those of a packed model.

    Raises:
        MissingInput: this worker cannot see the packed model, files of it are gone, or it is another model's.
        NotFound: there is no such compression.
        PackedFormatError: the file is damaged.
    """
    if compression_id is None:
        return DenseWeights(checkpoint)
    compression = context.recorder.read(lambda session: session.get(Compression, compression_id))
    if compression is None:
        raise NotFound("compression", compression_id)
    if compression.model_id != model.id:
        raise MissingInput(f"compression {compression.id} belongs to model {compression.model_id}, not to {model.id}")
    artefact = context.recorder.read(lambda session: session.get_one(Artefact, compression.artefact_id))
    folder = context.store.fetch(artefact.uri)
    if stored_bytes(folder) != compression.actual_bytes:
        raise MissingInput(
            f"the packed model of compression {compression.id} is incomplete ({artefact.uri}): submit its compress "
            "job again, it packs it anew"
        )
    return PackedModel.open(folder)
