"""Checks of what a request names: configs, texts, matrices, calibrations. Every refusal names its field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError
from compress_core.matrix import PROJECTIONS, MatrixSpec
from results_db.params import MatrixFilter, TextSpec
from results_db.recording import newest_calibration
from results_db.settings import Settings
from results_db.tables import Calibration
from server.kit.problem import Problem, core_problem, invalid
from server.kit.rows import get_row

#: a TextSpec, or a DatasetSpec with its split
Text = TypeVar("Text", bound=TextSpec)


def check_config(fields: Mapping[str, Any], field: str) -> CompressionConfig:
    """The config of these fields.

    Raises:
        Problem: invalid-config, naming the field.
    """
    try:
        return CompressionConfig.from_dict(fields)
    except ConfigError as error:
        # an unknown field is quoted, and the message lists the known ones after it
        named = [name for name in fields if repr(name) in str(error)] or [name for name in fields if name in str(error)]
        culprit = named[0] if named else None
        raise core_problem(error, f"{field}.{culprit}" if culprit else field) from error


def check_configs(configs: Sequence[Mapping[str, Any]], field: str) -> list[dict[str, Any]]:
    """The configs with every field written out, in order, without repeats."""
    checked: dict[str, dict[str, Any]] = {}
    for position, fields in enumerate(configs):
        config = check_config(fields, f"{field}.{position}")
        checked.setdefault(config.config_hash, config.to_dict())
    return list(checked.values())


def check_text(text: Text, settings: Settings, field: str) -> Text:
    """The text with its path absolute; it must exist inside the allowed folders.

    Raises:
        Problem: text-not-found, or a kind and a path that do not go together.
        PathNotAllowed: the path lies outside the allowed folders.
    """
    if (text.kind == "file") != (text.path is not None):
        raise invalid(f"{field}.path", "a text of kind file needs a path, stdlib has none")
    if text.path is None:
        return text
    path = settings.resolve_path(text.path)
    if not path.is_file():
        raise invalid(f"{field}.path", f"{text.path} is no file: give a .txt or a .jsonl", slug="text-not-found")
    return text.model_copy(update={"path": str(path)})


def check_matrices(matrices: MatrixFilter, specs: Sequence[MatrixSpec], field: str) -> None:
    """The layers and projections exist.

    Raises:
        Problem: unknown-matrix, naming the field.
    """
    for projection in matrices.projections or ():
        if projection not in PROJECTIONS:
            message = f"unknown projection {projection!r}: choose out of {', '.join(PROJECTIONS)}"
            raise invalid(f"{field}.projections", message, slug="unknown-matrix")
    n_layers = 1 + max(spec.key.layer_idx for spec in specs)
    for layer in matrices.layers or ():
        if not 0 <= layer < n_layers:
            message = f"the model has no layer {layer}: its layers are 0 to {n_layers - 1}"
            raise invalid(f"{field}.layers", message, slug="unknown-matrix")
    if matrices.layers == [] or matrices.projections == []:
        raise invalid(field, "an empty list selects no matrix: leave it out to take all")


def check_projection(projection: str | None) -> None:
    """A projection to filter by.

    Raises:
        Problem: unknown-matrix.
    """
    if projection is not None and projection not in PROJECTIONS:
        message = f"unknown projection {projection!r}: choose out of {', '.join(PROJECTIONS)}"
        raise invalid("projection", message, slug="unknown-matrix")


def check_calibration(session: Session, model_id: str, calibration_id: str | None) -> Calibration:
    """The calibration named, or the model's newest.

    Raises:
        NotFound: no calibration has this id.
        Problem: it belongs to another model; calibration-missing where the model has none.
    """
    if calibration_id is not None:
        calibration = get_row(session, Calibration, calibration_id)
        if calibration.model_id != model_id:
            raise invalid("calibration_id", f"{calibration_id} is a calibration of model {calibration.model_id}")
        return calibration
    newest = newest_calibration(session, model_id)
    if newest is None:
        raise Problem(
            409, "calibration-missing", f"model {model_id} has no calibration yet: POST /api/v1/calibrations first"
        )
    return newest
