"""A calibration's folder while it is being filled: what is there already, and what of it can be used."""

from __future__ import annotations

from pathlib import Path

from compress_core.calibrate.info import CalibrationInfo
from compress_core.calibrate.layer_file import check_owner, layer_inputs, layer_path, open_layer
from compress_core.calibrate.recipe import MANIFEST, Keep, read_recipe
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.headers import read_header
from compress_core.errors import CalibrationError, CheckpointError


def begin_folder(folder: Path) -> None:
    """Make the folder, without what a killed run was writing."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(".*.tmp"):
        path.unlink()


def is_complete(folder: Path, checkpoint: Checkpoint, info: CalibrationInfo, keeps: Keep) -> bool:
    """Whether the folder is this very calibration, complete.

    Raises:
        CalibrationError: it is another one, complete; nothing is overwritten.
    """
    if not (folder / MANIFEST).exists():
        return False
    recipe = read_recipe(folder, checkpoint)
    if recipe.info != info or recipe.keeps != keeps:
        differs = recipe.info.difference(info.to_json()) if recipe.info != info else "what it keeps"
        raise CalibrationError(f"{folder} holds another calibration (it differs in {differs}): choose another folder")
    return True


def is_whole(folder: Path, checkpoint: Checkpoint, info: CalibrationInfo, layer_idx: int) -> bool:
    """Whether a layer's file is there. A damaged one is not: it is written again.

    Raises:
        CalibrationError: it belongs to another calibration.
    """
    path = layer_path(folder, layer_idx)
    if not path.exists():
        return False
    try:
        header = read_header(path)
    except CheckpointError:
        return False
    try:
        check_owner(header, info, layer_idx)
        open_layer(path, info, layer_idx, layer_inputs(checkpoint, layer_idx))
    except CalibrationError as error:
        raise CalibrationError(f"{error}: choose another folder, or delete this one") from error
    return True
