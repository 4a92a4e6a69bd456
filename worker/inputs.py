"""What handlers start from: a model's checkpoint, a calibration, windows of text; each checked against its row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from compress_core.calibrate.calibration import Calibration as CalibrationFolder
from compress_core.calibrate.source import HessianSource
from compress_core.calibrate.streamed import StreamedCalibration
from compress_core.checkpoint import Checkpoint, open_checkpoint
from compress_core.checkpoint.decoder_config import DecoderConfig
from compress_core.checkpoint.resolve import hub_cache
from compress_core.errors import CalibrationError
from compress_core.matrix import MatrixKey
from compress_core.text import Split, TextSource, split_text
from compress_core.text.tokens import TokenWindows, fixed_windows, sampled_windows
from results_db.errors import NotFound
from results_db.params import TextSpec, WindowSpec
from results_db.recording import newest_calibration
from results_db.tables import Artefact, Calibration, Model
from worker.context import JobContext
from worker.errors import MissingInput, ModelChanged
from worker.fingerprints import remember_fingerprint


def get_model(session: Session, model_id: str) -> Model:
    """The model's row.

    Raises:
        NotFound: no such model.
    """
    model = session.get(Model, model_id)
    if model is None:
        raise NotFound("model", model_id)
    return model


def open_model(context: JobContext, model_id: str) -> tuple[Model, Checkpoint]:
    """The model's row and its checkpoint, which must still be the one that was registered.

    Raises:
        MissingInput: a hub model that was not fetched.
        PathNotAllowed: the folder, or a file in it, leads out of the model roots and of the hub's cache.
        ModelChanged: the files have other contents than when they were registered.
        CheckpointError: the files are gone or damaged.
    """
    model = context.recorder.read(lambda session: get_model(session, model_id))
    if model.local_path is None:
        raise MissingInput(f"model {model.name} ({model.id}) is not on this machine: submit a fetch job for it first")
    # looked at again: links may have been laid since the server did, and roots are each host's own
    checkpoint = open_checkpoint(context.settings.resolve_folder(model.local_path, also=(hub_cache(),)))
    fingerprint = remember_fingerprint(checkpoint, context.settings.var_dir / "cache" / "fingerprints")
    if model.fingerprint is not None and fingerprint != model.fingerprint:
        raise ModelChanged(
            f"the files in {model.local_path} are no longer those of model {model.id} (fingerprint "
            f"{fingerprint[:12]}, registered {model.fingerprint[:12]}): restore them, or register the "
            "folder again as a new model"
        )
    return model, checkpoint


def get_calibration(context: JobContext, model: Model, calibration_id: str | None) -> Calibration:
    """The calibration of that id, or the model's newest.

    Raises:
        MissingInput: there is none; says what to submit.
    """

    def find(session: Session) -> Calibration:
        if calibration_id is None:
            row = newest_calibration(session, model.id)
            if row is None:
                raise MissingInput(
                    f"model {model.name} ({model.id}) has no calibration: submit a calibrate job for it first"
                )
            return row
        row = session.get(Calibration, calibration_id)
        if row is None:
            raise NotFound("calibration", calibration_id)
        if row.model_id != model.id:
            raise MissingInput(f"calibration {row.id} belongs to model {row.model_id}, not to {model.id}")
        return row

    return context.recorder.read(find)


def open_calibration(
    context: JobContext, row: Calibration, checkpoint: Checkpoint, *, wanted: Collection[MatrixKey] | None = None
) -> HessianSource:
    """The calibration's H: stored, or computed layer by layer while the job asks for it, in the order of the layers.

    Args:
        wanted: the matrices that the job will ask for; None = all.

    Raises:
        MissingInput: this worker cannot see the artefact.
        CalibrationError: the artefact is damaged or fits another model.
    """
    artefact = context.recorder.read(lambda session: session.get_one(Artefact, row.artefact_id))
    path = context.store.fetch(artefact.uri)
    if row.keeps == "hessians":
        return CalibrationFolder.open(path, checkpoint)
    return StreamedCalibration.open(
        path,
        checkpoint,
        # of this job: another attempt finds what a killed one left
        context.store.workspace("hessians", f"{context.claim.job_id} {row.id}"),
        device=context.device.torch_name,
        wanted=wanted,
        # otherwise in the batches of the calibration, which a stored one of the same tokens has
        most_batch_tokens=context.batch_tokens if context.starved else None,
        ram_bytes=hidden_ram_bytes(context),
        progress=lambda done, total, message: context.progress.note(message),
    )


def hidden_ram_bytes(context: JobContext) -> int:
    """Hidden states above this go to mapped files."""
    return int(context.settings.hidden_ram_gb * 1e9)


def text_source(context: JobContext, text: TextSpec) -> TextSource:
    """The text that a job means; files and folders, and what links in folders lead to, must lie inside the model roots.

    Raises:
        PathNotAllowed: something outside of them.
        ConfigError: fields that do not go together.
    """
    values = text.model_dump(exclude={"split"})
    if text.path is not None and text.revision is None:
        settings = context.settings
        # every file of a dataset's folder may be read, so no link in it may lead out either
        resolve = partial(settings.resolve_folder, deep=True) if text.kind == "dataset" else settings.resolve_path
        values["path"] = resolve(text.path)
    return TextSource.from_dict(values)


def draw_windows(
    context: JobContext, checkpoint: Checkpoint, text: TextSpec, split: Split, windows: WindowSpec
) -> TokenWindows:
    """Windows drawn by seed; all windows in order where no count is given.

    Raises:
        CalibrationError: windows longer than the model's positions; the split is too short: says how many it has.
    """
    n_positions = DecoderConfig.of(checkpoint.config).n_positions
    if n_positions is not None and windows.length > n_positions:
        raise CalibrationError(
            f"windows of {windows.length} tokens: config.json says max_position_embeddings = {n_positions}, and beyond "
            "that nothing that is measured means anything; choose windows.length up to it"
        )
    content = split_text(text_source(context, text), split)
    if windows.count is None:
        return fixed_windows(checkpoint.path, content, windows.length)
    return sampled_windows(checkpoint.path, content, samples=windows.count, length=windows.length, seed=windows.seed)


def content_hash(values: dict[str, Any]) -> str:
    """64 hex digits of a JSON-able description: equal descriptions are the same work."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
