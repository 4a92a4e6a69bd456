"""What a calibration's folder says of itself: ``calibration.json``, written last, and the exact tokens.

A folder with ``calibration.json`` is complete; one without it was interrupted and can be gone on with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compress_core.calibrate.info import CalibrationInfo
from compress_core.calibrate.layer_file import FORMAT, VERSION
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.headers import read_header
from compress_core.checkpoint.read import read_tensor
from compress_core.checkpoint.writer import Entry, SafetensorsWriter
from compress_core.errors import CalibrationError, CheckpointError
from compress_core.text.tokens import TokenWindows

MANIFEST = "calibration.json"
TOKENS = "tokens.safetensors"

#: what a folder keeps: H of every layer, or only what H is computed from
Keep = Literal["hessians", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A calibration's description."""

    info: CalibrationInfo
    keeps: Keep
    #: what a reader should know: ``unseen`` inputs, what an import found and missed
    report: dict[str, Any] = field(default_factory=dict)


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write ``calibration.json``: from now on the folder is complete."""
    values = {
        "format": FORMAT,
        "version": VERSION,
        "keeps": recipe.keeps,
        "calibration": asdict(recipe.info),
        "report": recipe.report,
    }
    path = folder / MANIFEST
    temporary = path.with_name(f".{MANIFEST}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(values, indent=2, sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def read_recipe(folder: Path | str, checkpoint: Checkpoint) -> Recipe:
    """The description of a complete calibration of this model.

    Raises:
        CalibrationError: no such folder, an incomplete or damaged one, another form, or made from other weights.
    """
    folder = Path(folder)
    if folder.is_file():
        raise CalibrationError(f"{folder} is no calibration of version {VERSION} (a folder): run calibrate again")
    try:
        values = json.loads((folder / MANIFEST).read_text("utf-8"))
    except FileNotFoundError:
        raise CalibrationError(
            f"calibration unusable: cannot read {folder / MANIFEST}; without it the calibration is missing or was "
            "interrupted: run calibrate again, it goes on where it stopped"
        ) from None
    except (OSError, ValueError) as error:
        raise CalibrationError(f"calibration unusable: cannot read {folder / MANIFEST}: {error}") from error
    if not isinstance(values, Mapping) or values.get("format") != FORMAT or values.get("version") != VERSION:
        raise CalibrationError(f"{folder} is no calibration of version {VERSION}: run calibrate again")
    keeps, report = values.get("keeps"), values.get("report")
    if keeps not in ("hessians", "tokens") or not isinstance(report, dict):
        raise CalibrationError(f"{folder / MANIFEST}: the description of the calibration is damaged")
    try:
        info = CalibrationInfo.from_dict(values.get("calibration") or {})
    except CalibrationError as error:
        raise CalibrationError(f"{folder / MANIFEST}: {error}") from error
    if info.model_fingerprint != checkpoint.fingerprint:
        raise CalibrationError(
            f"{folder} was made from other weights (model {info.model_fingerprint[:12]}, "
            f"{checkpoint.path} is {checkpoint.fingerprint[:12]}): run calibrate again"
        )
    return Recipe(info=info, keeps=keeps, report=report)


def write_tokens(folder: Path, tokens: TokenWindows) -> None:
    """Keep the exact ids."""
    ids = np.ascontiguousarray(tokens.ids, dtype="<i4")
    n_bytes = np.ascontiguousarray(tokens.n_bytes, dtype="<i8")
    entries = [Entry("n_bytes", "I64", n_bytes.shape), Entry("ids", "I32", ids.shape)]
    with SafetensorsWriter(folder / TOKENS, entries, {"format": FORMAT, "version": VERSION}) as writer:
        writer.write("n_bytes", n_bytes.tobytes())
        writer.write("ids", ids.tobytes())


def read_tokens(folder: Path, info: CalibrationInfo) -> TokenWindows:
    """The ids that a calibration was made from.

    Raises:
        CalibrationError: it kept none (an imported one), or they are damaged.
    """
    try:
        tensors = read_header(folder / TOKENS).tensors
        tokens = TokenWindows(read_tensor(tensors["ids"]).numpy(), read_tensor(tensors["n_bytes"]).numpy())
    except (CheckpointError, KeyError) as error:
        raise CalibrationError(f"{folder} has no tokens to compute H from: {error}") from error
    if tokens.ids.ndim != 2 or tokens.sha256 != info.token_sha256:
        raise CalibrationError(f"{folder / TOKENS} does not hold the tokens that {MANIFEST} names: run calibrate again")
    return tokens
