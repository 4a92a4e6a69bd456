"""A model's shapes: of a registered model, a folder's headers, a known hub model, or the hub. No weight is read."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.headers import DTYPE_BYTES, TensorHeader
from compress_core.checkpoint.layout import find_layout
from compress_core.hub import is_hub_id
from compress_core.plan import ModelShapes
from results_db.queries.models import find_by_source
from results_db.settings import Settings
from results_db.tables import Model
from server.kit.problem import Problem, invalid
from server.models.service import model_specs
from server.studies.schemas import ModelSection

log = logging.getLogger(__name__)

#: public dimensions of the models that the studies in configs/ are about
KNOWN = Path(__file__).resolve().parents[2] / "configs" / "models"
_HUB_TIMEOUT_S = 10.0


def shapes_of(session: Session, model: ModelSection, settings: Settings) -> tuple[ModelShapes, bool]:
    """The shapes, and whether the files must be fetched first.

    Raises:
        Problem: model-not-found, shapes-unknown.
        PathNotAllowed: the path lies outside the model roots.
        CheckpointError, UnsupportedArchitecture: there is something that is no checkpoint of ours.
    """
    row = session.get(Model, model.source) or find_by_source(session, model.source, model.revision)
    if row is not None and row.local_path is not None:
        return _of_row(row), False
    if is_hub_id(model.source) and not os.path.exists(model.source):
        return _known(model.source) or _of_hub(model.source, model.revision), True
    return _of_folder(model, settings), False


def _of_row(row: Model) -> ModelShapes:
    return ModelShapes.from_headers(
        row.config,
        model_specs(row),
        fixed_bytes=row.fixed_bytes or 0,
        original_bytes=row.original_bytes or 0,
        name=row.name,
        origin=f"the registered model {row.id}",
    )


def _of_folder(model: ModelSection, settings: Settings) -> ModelShapes:
    folder = settings.resolve_folder(model.source)
    if not folder.exists():
        message = f"{model.source} does not exist: give a folder, a model's id, or a hub id"
        raise invalid("model.source", message, slug="model-not-found")
    checkpoint = open_checkpoint(folder)
    return ModelShapes.from_headers(
        checkpoint.config,
        checkpoint.matrices(),
        fixed_bytes=checkpoint.other_bytes,
        original_bytes=checkpoint.other_bytes + checkpoint.matrix_bytes,
        name=model.name or folder.name,
        origin="the headers of the folder's safetensors",
    )


def _known(hub_id: str) -> ModelShapes | None:
    for path in sorted(KNOWN.glob("*.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        if hub_id in entry["hub_ids"]:
            return ModelShapes.from_config(entry["config"], hub_id, f"configs/models/{path.name}")
    return None


def _of_hub(hub_id: str, revision: str | None) -> ModelShapes:
    """From config.json and the headers alone, asked of the hub.

    Raises:
        Problem: shapes-unknown: there is no network, or no such model.
    """
    try:
        from huggingface_hub import get_safetensors_metadata, hf_hub_download

        path = hf_hub_download(hub_id, "config.json", revision=revision, etag_timeout=_HUB_TIMEOUT_S)
        config: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        metadata = get_safetensors_metadata(hub_id, revision=revision)
    except Exception as error:  # the hub's client raises errors of requests, of the network and its own
        log.warning("the hub tells nothing of %s: %s", hub_id, error)
        raise Problem(
            422,
            "shapes-unknown",
            f"model.source: the hub tells nothing of {hub_id} ({type(error).__name__}): plan where there is a network, "
            "or with a folder that holds the model",
        ) from error
    tensors = {
        name: TensorHeader(name, info.dtype, tuple(info.shape), Path(file), 0, _nbytes(info.dtype, info.shape))
        for file, found in metadata.files_metadata.items()
        for name, info in found.tensors.items()
    }
    layout = find_layout(config, tensors)
    whole = sum(tensor.nbytes for tensor in tensors.values())
    size = max((DTYPE_BYTES[tensor.dtype] for tensor in tensors.values()), default=2)
    weights = sum(size * spec.n_weights for spec in layout.matrices)
    return ModelShapes.from_headers(
        config,
        layout.matrices,
        fixed_bytes=max(0, whole - weights),
        original_bytes=whole,
        name=hub_id,
        origin="config.json and headers on the hub",
    )


def _nbytes(dtype: str, shape: list[int]) -> int:
    nbytes = DTYPE_BYTES.get(dtype, 2)
    for length in shape:
        nbytes *= length
    return nbytes
