"""validate: what whole allocations really do to the model, on text that nothing was fitted to.

All of them and the original go through the layers together; hidden states lie in a workspace that survives a kill, so
that another attempt goes on after the last layer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core import NUMERICS_VERSION, CompressionConfig, MatrixKey
from compress_core.analyze.validation import Assessment, Tried, assess
from compress_core.checkpoint import Checkpoint
from compress_core.errors import ConfigError
from compress_core.grid import is_uniform
from compress_core.verify.joint import JointLosses, joint_losses
from compress_core.verify.meter import THOUSANDTHS
from results_db.errors import NotFound
from results_db.params import ValidateParams
from results_db.queue.transitions import get_job
from results_db.recording import record_validation
from results_db.tables import Allocation, AllocationItem
from worker.context import JobContext
from worker.errors import MissingInput
from worker.inputs import draw_windows, get_calibration, open_calibration, open_model

_DTYPE = "float32"


@dataclass(frozen=True)
class Given:
    """An allocation as it is stored."""

    row: Allocation
    items: Mapping[MatrixKey, CompressionConfig]

    @property
    def budget(self) -> int | None:
        """Bytes that its matrices were allowed."""
        row = self.row
        return None if row.budget_bytes is None else row.budget_bytes - (row.total_bytes - row.matrix_bytes)


def run(params: ValidateParams, context: JobContext) -> dict[str, Any]:
    """Result: {validation_id, winner_allocation_id, recommended, calibrated, spearman, log_slope, reanchor,
    n_allocations, n_windows}.

    ``reanchor`` is true where that was asked for and the prediction fails its check: sensitivities should then be
    measured anew around the incumbent.
    """
    model, checkpoint = open_model(context, params.model_id)
    given = context.recorder.read(lambda session: get_allocations(session, params, checkpoint))
    calibration = get_calibration(context, model, params.calibration_id or calibration_of(given))
    context.progress.begin(THOUSANDTHS, message="reading the text")
    tokens = draw_windows(context, checkpoint, params.text, params.split, params.windows)
    if tokens.n_windows < 2:
        raise ConfigError("windows.count: a validation needs 2 windows or more, a single one has no interval")
    hessians = open_calibration(context, calibration, checkpoint)
    # of this job: another attempt finds what a killed one left. The states' bits depend on the batches and on torch
    workspace = context.store.workspace(
        "validations", f"{context.claim.job_id} {context.batch_tokens} {torch.__version__}"
    )
    began = time.perf_counter()
    losses = joint_losses(
        checkpoint,
        hessians,
        tokens,
        [allocation.items for allocation in given],
        names=[allocation.row.name for allocation in given],
        device=context.device.torch_name,
        dtype=_DTYPE,
        batch_tokens=context.batch_tokens,
        # in files however small: decomposing is what a killed attempt would have to do again
        ram_bytes=0,
        scratch=workspace,
        on_resume=lambda done, total: context.progress.begin(
            total, reused=done, message=f"{done} of {total} were done before"
        ),
        progress=context.progress,
    )
    seconds = time.perf_counter() - began
    tried = [_tried(checkpoint, allocation, losses, number) for number, allocation in enumerate(given)]
    found = assess(tried, losses.original.nll, losses.original.n_tokens)
    winner = None if found.choice is None else tried[found.choice.winner].id
    values = {
        "model_id": model.id,
        "calibration_id": calibration.id,
        "study_id": context.recorder.read(lambda session: get_job(session, context.claim.job_id).study_id),
        "name": params.name,
        "dataset": params.text.name,
        "split": params.split,
        "token_hash": tokens.sha256,
        "n_windows": tokens.n_windows,
        "n_tokens": tokens.n_tokens,
        "text": params.text.model_dump(exclude_none=True),
        "n_allocations": len(given),
        "winner_allocation_id": winner,
        "details": found.details,
        "numerics_version": NUMERICS_VERSION,
        "device_kind": context.device.kind,
        "seconds": seconds,
    }
    items = item_rows(checkpoint, tried, losses)
    validation_id = context.recorder.write(
        lambda session, claim: record_validation(session, claim, items=items, **values, **check_columns(found))
    )
    context.store.workspaces.close(workspace)
    hessians.close()
    check = found.calibration
    return {
        "validation_id": validation_id,
        "winner_allocation_id": winner,
        "recommended": found.details["recommended"],
        "calibrated": check.calibrated,
        "spearman": None if check.spearman is None else check.spearman.value,
        "log_slope": None if check.log_slope is None else check.log_slope.value,
        "reanchor": params.reanchor and check.failed,
        "n_allocations": len(given),
        "n_windows": tokens.n_windows,
    }


def get_allocations(session: Session, params: ValidateParams, checkpoint: Checkpoint) -> list[Given]:
    """The allocations, each once, with a config for every matrix of the model.

    Raises:
        NotFound: there is none of an id.
        MissingInput: one belongs to another model, or lacks a matrix.
    """
    found = []
    for allocation_id in dict.fromkeys(params.allocation_ids):
        row = session.get(Allocation, allocation_id)
        if row is None:
            raise NotFound("allocation", allocation_id)
        if row.model_id != params.model_id:
            raise MissingInput(f"allocation {row.id} belongs to model {row.model_id}, not to {params.model_id}")
        columns = (
            AllocationItem.layer_idx,
            AllocationItem.projection,
            AllocationItem.expert_idx,
            AllocationItem.config,
        )
        choices = session.execute(select(*columns).where(AllocationItem.allocation_id == row.id))
        items = {MatrixKey(*key): CompressionConfig.from_dict(config) for *key, config in choices}
        if missing := [spec.key for spec in checkpoint.matrices() if spec.key not in items]:
            raise MissingInput(f"allocation {row.id} has no config for matrix {missing[0]}: make it again")
        found.append(Given(row, items))
    return found


def item_rows(checkpoint: Checkpoint, tried: Sequence[Tried], losses: JointLosses) -> list[dict[str, Any]]:
    """The rows of ``validation_items``, the original model first; nothing is predicted of it."""
    n_tokens = losses.original.n_tokens
    original = {
        "allocation_id": None,
        "name": "original",
        "kind": "original",
        "matrix_bytes": sum(checkpoint.stored_nbytes(spec) for spec in checkpoint.matrices()),
        "predicted_kl": None,
        "kl": 0.0,
        "kl_se": 0.0,
        "nll": losses.original.nats_per_token,
        "ppl": losses.original.perplexity,
        "windows": _windows(np.zeros_like(losses.original.nll), losses.original.nll, n_tokens),
    }
    rows = [original]
    for t, loss in zip(tried, losses.losses, strict=True):
        rows.append(
            {
                "allocation_id": t.id,
                "name": t.name,
                "kind": t.kind,
                "matrix_bytes": t.nbytes,
                "predicted_kl": t.predicted_kl,
                "kl": t.kl,
                "kl_se": float(t.kl_N.std(ddof=1)) / t.kl_N.size**0.5,
                "nll": loss.nats_per_token,
                "ppl": loss.perplexity,
                "windows": _windows(t.kl_N, t.nll_N, n_tokens),
            }
        )
    return rows


def check_columns(found: Assessment) -> dict[str, Any]:
    """The columns that say how true the predictions were."""
    check = found.calibration
    columns: dict[str, Any] = {"calibrated": check.calibrated}
    for name in ("spearman", "log_slope"):
        estimate = getattr(check, name)
        values = {} if estimate is None else asdict(estimate)
        columns |= {name: values.get("value"), f"{name}_low": values.get("low"), f"{name}_high": values.get("high")}
    for name in ("kappa", "residual_sd"):
        estimate = getattr(check, name)
        columns[name] = None if estimate is None else estimate.value
    return columns


def calibration_of(given: Sequence[Given]) -> str | None:
    """The calibration that the allocations were made under.

    Raises:
        ConfigError: there are several.
    """
    ids = sorted({allocation.row.calibration_id for allocation in given if allocation.row.calibration_id is not None})
    if len(ids) > 1:
        raise ConfigError(
            f"the allocations were made under several calibrations ({', '.join(ids)}): validate them apart"
        )
    return ids[0] if ids else None


def _tried(checkpoint: Checkpoint, given: Given, losses: JointLosses, number: int) -> Tried:
    row = given.row
    return Tried(
        id=row.id,
        name=row.name,
        kind=row.kind,
        content_hash=row.content_hash,
        nbytes=row.matrix_bytes,
        nll_N=losses.losses[number].nll,
        kl_N=losses.kl_AN[number],
        predicted_kl=row.predicted_kl,
        uniform=is_uniform({spec: given.items[spec.key] for spec in checkpoint.matrices()}),
        budget=given.budget,
    )


def _windows(kl_N: Any, nll_N: Any, n_tokens_N: Any) -> list[tuple[float, float, int]]:
    return [(float(kl), float(nll), int(n)) for kl, nll, n in zip(kl_N, nll_N, n_tokens_N, strict=True)]
