"""fetch: bring a hub model to this machine and fill in its row."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.resolve import fetch_model
from compress_core.pack.layout import fixed_bytes
from results_db.params import FetchParams
from results_db.queries.models import checkpoint_columns, find_by_fingerprint
from results_db.queue.lease import Claim, hold_lease
from worker.context import JobContext
from worker.errors import DuplicateModel
from worker.inputs import get_model


def run(params: FetchParams, context: JobContext) -> dict[str, Any]:
    """Result: {model_id}."""
    model = context.recorder.read(lambda session: get_model(session, params.model_id))
    context.progress.begin(1, message=f"fetching {model.source}")
    checkpoint = open_checkpoint(fetch_model(model.source, model.revision))
    context.progress.check()
    columns = checkpoint_columns(checkpoint, fixed_bytes(checkpoint))

    def fill(session: Session, claim: Claim) -> None:
        hold_lease(session, claim)
        same = find_by_fingerprint(session, columns["fingerprint"])
        if same is not None and same.id != model.id:
            raise DuplicateModel(f"{model.source} holds the weights of model {same.name} ({same.id}): use that model")
        row = get_model(session, model.id)
        for name, value in columns.items():
            setattr(row, name, value)

    context.recorder.write(fill)
    context.progress(1, 1, f"{model.source} is here")
    return {"model_id": model.id}
