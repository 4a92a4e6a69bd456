"""Checks of what a request names: configs, texts, matrices, calibrations. Every refusal names its field."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from compress_core.config import CompressionConfig
from compress_core.errors import CalibrationError, ConfigError
from compress_core.hub import is_hub_id
from compress_core.matrix import PROJECTIONS, MatrixSpec
from compress_core.text.documents import JSON_LINES, unreadable_suffix
from compress_core.text.source import TextSource, iter_documents
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
    """The text with its path absolute; what it names must exist inside the allowed folders, or be pinned on a hub.

    Of JSON lines the first record is read. Parquet and datasets are opened by the worker: the server has no library for
    them.

    Raises:
        Problem: text-not-found, fields that do not go together, or a first record without the text; names the field.
        PathNotAllowed: the path, or a file in a dataset's folder, lies outside the allowed folders.
    """
    try:
        source = TextSource.from_dict(text.model_dump(exclude={"split"}))
    except ConfigError as error:
        culprit, _, message = str(error).partition(": ")
        raise invalid(f"{field}.{culprit}", message) from error
    if text.path is None:
        return text
    if text.kind == "dataset" and is_hub_id(text.path) and not os.path.exists(text.path):
        if text.revision is None:
            message = f"{text.path} is no local folder, and as a hub dataset it needs the 40 hex digits of a commit"
            raise invalid(f"{field}.revision", message, slug="text-not-found")
        return text
    # every file of a dataset's folder may be read, so no link in it may lead out either
    path = settings.resolve_folder(text.path, deep=True) if text.kind == "dataset" else settings.resolve_path(text.path)
    if text.kind == "dataset":
        if text.revision is not None:
            raise invalid(f"{field}.revision", f"{text.path} is a local folder: leave its revision out")
        if not path.is_dir():
            raise invalid(f"{field}.path", f"{text.path} is no folder of a dataset", slug="text-not-found")
    else:
        _check_file(replace(source, path=path), text.path, field)
    return text.model_copy(update={"path": str(path)})


def _check_file(source: TextSource, given: str, field: str) -> None:
    assert source.path is not None
    if not source.path.is_file():
        message = f"{given} is no file: give a .txt, .jsonl, .jsonl.gz or .parquet"
        raise invalid(f"{field}.path", message, slug="text-not-found")
    if (suffix := unreadable_suffix(source.path)) is not None:
        raise invalid(f"{field}.path", f"{given}: {suffix} cannot be read, give a .txt, .jsonl, .jsonl.gz or .parquet")
    if source.path.name.endswith(JSON_LINES):
        try:
            first = next(iter_documents(source), None)
        except CalibrationError as error:
            raise core_problem(error, f"{field}.field") from error
        if first is None:
            raise invalid(f"{field}.path", f"{given} holds no document")


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
