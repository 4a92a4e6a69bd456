"""One layer's Hessians on disk: a safetensors file with the upper half of H for each distinct input.

The metadata bind a file to its calibration, so a layer of another model, text, dtype or numerics is never taken for
this one's. A file has its final name only when it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from compress_core.calibrate.half import half_pieces, half_size
from compress_core.calibrate.info import CalibrationInfo
from compress_core.calibrate.inputs import input_name
from compress_core.calibrate.second_moment import is_finite
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.headers import FileHeader, read_header
from compress_core.checkpoint.writer import Entry, SafetensorsWriter
from compress_core.errors import CalibrationError, CheckpointError, NonFiniteValues

FORMAT = "bitbudget-calibration"
VERSION = "2"


class Moment(Protocol):
    """A Hessian that can be written: see ``SecondMoment``."""

    @property
    def seen(self) -> bool: ...

    def panels(self) -> Iterator[tuple[slice, Tensor]]: ...


def layer_path(folder: Path, layer_idx: int) -> Path:
    return folder / f"layer-{layer_idx:05d}.safetensors"


def layer_inputs(checkpoint: Checkpoint, layer_idx: int, wanted: Collection[str] | None = None) -> dict[str, int]:
    """The width of each distinct input of a layer, or of those that are wanted, in the order of its matrices."""
    inputs = {input_name(spec.key): spec.in_features for spec in checkpoint.layer_matrices(layer_idx)}
    return {name: width for name, width in inputs.items() if wanted is None or name in wanted}


def layer_entries(inputs: Mapping[str, int]) -> list[Entry]:
    """Name, dtype and shape of every tensor in a layer's file, in order."""
    return [Entry(name, "F32", (half_size(width),)) for name, width in inputs.items()]


def write_layer(
    path: Path, info: CalibrationInfo, layer_idx: int, inputs: Mapping[str, int], moments: Mapping[str, Moment]
) -> None:
    """Write a layer's file under its final name, a panel at a time.

    Raises:
        NonFiniteValues: an H overflowed.
    """
    metadata = {"format": FORMAT, "version": VERSION, "layer": str(layer_idx), "calibration": info.to_json()}
    metadata["unseen"] = json.dumps([name for name in inputs if not moments[name].seen])
    entries = layer_entries(inputs)
    with SafetensorsWriter(path, entries, metadata) as writer:
        for entry in entries:
            panels = _finite(moments[entry.name].panels(), f"H of input {entry.name!r} in layer {layer_idx}")
            writer.write_pieces(entry.name, entry.nbytes, half_pieces(panels))


def open_layer(path: Path, info: CalibrationInfo, layer_idx: int, inputs: Mapping[str, int]) -> FileHeader:
    """A layer's header, sure to belong to this calibration and to have these inputs.

    Raises:
        CalibrationError: missing, damaged, of another calibration, layer or shape; says which.
    """
    try:
        header = read_header(path)
    except CheckpointError as error:
        raise CalibrationError(f"calibration unusable: {error}") from error
    check_owner(header, info, layer_idx)
    for entry in layer_entries(inputs):
        found = header.tensors.get(entry.name)
        if found is None or found.shape != entry.shape or found.dtype != entry.dtype:
            have = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise CalibrationError(
                f"{path} does not fit the model: H of {layer_idx}.{entry.name} must be {entry.dtype} "
                f"{list(entry.shape)}, the file has {have}"
            )
    return header


def check_owner(header: FileHeader, info: CalibrationInfo, layer_idx: int) -> None:
    """The file is this layer of this calibration.

    Raises:
        CalibrationError: it is not; says in what it differs.
    """
    metadata = header.metadata
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise CalibrationError(f"{header.path} is no layer of a calibration of version {VERSION}: run calibrate again")
    if metadata.get("layer") != str(layer_idx):
        raise CalibrationError(f"{header.path} holds layer {metadata.get('layer')}, not {layer_idx}")
    theirs = metadata.get("calibration", "")
    if theirs != info.to_json():
        raise CalibrationError(f"{header.path} is of another calibration: it differs in {info.difference(theirs)}")


def unseen_inputs(header: FileHeader) -> list[str]:
    """Inputs that no token reached, of experts that were never chosen: see ``compress_core.calibrate.routed``."""
    return [str(name) for name in json.loads(header.metadata.get("unseen", "[]"))]


def _finite(panels: Iterator[tuple[slice, Tensor]], name: str) -> Iterator[tuple[slice, Tensor]]:
    for rows, panel_PI in panels:
        if not is_finite(panel_PI):
            raise NonFiniteValues(f"{name} overflowed: use dtype float32")
        yield rows, panel_PI
        del panel_PI  # before the next one is made
