"""Import a calibration: second moments, or only their diagonals, that somebody has already, from an ``.npz``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from compress_core.calibrate.archive import Archive
from compress_core.calibrate.archive_names import Input, Match, match_arrays
from compress_core.calibrate.calibration import Calibration
from compress_core.calibrate.folder import begin_folder, is_complete, is_whole
from compress_core.calibrate.half import square_panels
from compress_core.calibrate.info import CalibrationInfo
from compress_core.calibrate.layer_file import layer_inputs, layer_path, write_layer
from compress_core.calibrate.recipe import Recipe, write_recipe
from compress_core.calibrate.second_moment import PANEL_ROWS, panel_rows
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.errors import CalibrationError
from compress_core.progress import Progress, silent
from compress_core.version import NUMERICS_VERSION

#: what rounding may do to a symmetric matrix, or to one statistic in two arrays, relative to its largest entry
_TOLERANCE = 1e-3

Fill = Literal["identity"]


def import_calibration(
    checkpoint: Checkpoint,
    archive: Archive,
    out_dir: Path,
    *,
    fill: Fill | None = None,
    progress: Progress = silent,
) -> Calibration:
    """Write the calibration of an archive, in the form of any other, and open it.

    A diagonal makes a diagonal H. The scale of H does not matter to anything that is computed from it. Goes on where an
    interrupted import stopped, as ``calibrate_model`` does.

    Args:
        fill: what an input gets that the archive lacks; ``identity``: I, scaled by the mean of the diagonals found.

    Raises:
        CalibrationError: an input is missing and ``fill`` is None (lists them); shapes of another model; an array that
            is not finite, no second moment (not symmetric, negative on its diagonal, larger beside it than the
            diagonal allows), or disagrees with another one of the same input;
            ``out_dir`` holds another calibration.
        Interrupted: by ``progress``; layers that are done stay in ``out_dir``.
    """
    match = match_arrays(archive.arrays, checkpoint.matrices())
    if fill is None:
        match.check_complete()
    info = _describe(checkpoint, archive, fill)
    if is_complete(out_dir, checkpoint, info, "hessians"):
        progress(1, 1, "the calibration is there already")
        return Calibration.open(out_dir, checkpoint)
    begin_folder(out_dir)
    scale = _mean_diagonal(archive, match) if match.missing else 1.0
    for layer_idx in range(checkpoint.n_layers):
        if not is_whole(out_dir, checkpoint, info, layer_idx):
            inputs = layer_inputs(checkpoint, layer_idx)
            moments = {
                name: ArchivedMoment(archive, match, (layer_idx, name), width, scale) for name, width in inputs.items()
            }
            write_layer(layer_path(out_dir, layer_idx), info, layer_idx, inputs, moments)
        progress(layer_idx + 1, checkpoint.n_layers, f"imported layer {layer_idx + 1} of {checkpoint.n_layers}")
    write_recipe(out_dir, Recipe(info=info, keeps="hessians", report={"unseen": [], "import": match.report()}))
    return Calibration.open(out_dir, checkpoint)


@dataclass(frozen=True)
class ArchivedMoment:
    """The H of one input, read and checked when it is written."""

    archive: Archive
    match: Match
    key: Input
    width: int
    #: diagonal of what stands for an input that is missing
    scale: float
    seen: bool = True

    def panels(self) -> Iterator[tuple[slice, Tensor]]:
        """See ``SecondMoment.panels``.

        Raises:
            CalibrationError: an array is not what it should be.
        """
        moments = self.match.moments.get(self.key, [])
        diagonals = [(name, _read_diagonal(self.archive, name)) for name in self.match.diagonals.get(self.key, [])]
        if moments:
            square_II = _read_moment(self.archive, moments[0])
            for name in moments[1:]:
                _check_equal(moments[0], square_II, name, _read_moment(self.archive, name))
            for name, diagonal_I in diagonals:
                _check_equal(moments[0], square_II.diagonal(), name, diagonal_I)
            yield from square_panels(square_II)
            return
        diagonal_I = diagonals[0][1] if diagonals else torch.full((self.width,), self.scale)
        for name, other_I in diagonals[1:]:
            _check_equal(diagonals[0][0], diagonal_I, name, other_I)
        for rows in panel_rows(self.width):
            panel_PI = torch.zeros(rows.stop - rows.start, self.width - rows.start)
            panel_PI.diagonal().copy_(diagonal_I[rows])
            yield rows, panel_PI


def _read_moment(archive: Archive, name: str) -> Tensor:
    """A second moment (n, n) in float32, exactly symmetric."""
    square_II = _read_finite(archive, name)
    largest = _largest(square_II)
    for rows in panel_rows(square_II.shape[0]):
        upper_PI, lower_PI = square_II[rows, rows.start :], square_II[rows.start :, rows].T
        difference = _largest(upper_PI - lower_PI)
        if difference > _TOLERANCE * largest:
            raise CalibrationError(
                f"array {name!r} of {archive.path} is not symmetric: entries that should be equal differ by "
                f"{difference:.3g}, its largest is {largest:.3g}; a second moment E[x xᵀ] is expected"
            )
        mean_PI = (upper_PI + lower_PI) / 2
        square_II[rows, rows.start :] = mean_PI
        square_II[rows.start :, rows] = mean_PI.T
    _check_diagonal(archive, name, square_II.diagonal())
    _check_bounded(archive, name, square_II, largest)
    return square_II


def _read_diagonal(archive: Archive, name: str) -> Tensor:
    diagonal_I = _read_finite(archive, name)
    _check_diagonal(archive, name, diagonal_I)
    return diagonal_I


def _read_finite(archive: Archive, name: str) -> Tensor:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is told
        values = torch.from_numpy(archive.read(name).astype(np.float32, order="C", copy=False))
    if not math.isfinite(_largest(values)):
        raise CalibrationError(f"array {name!r} of {archive.path} holds NaN, or values that float32 cannot hold")
    return values


def _check_diagonal(archive: Archive, name: str, diagonal_I: Tensor) -> None:
    if float(diagonal_I.amin()) < 0:
        raise CalibrationError(
            f"array {name!r} of {archive.path} has {float(diagonal_I.amin()):.3g} on its diagonal: a mean of squares "
            "is never negative"
        )
    if float(diagonal_I.amax()) == 0:
        raise CalibrationError(f"array {name!r} of {archive.path} has nothing but zeros on its diagonal")


def _check_bounded(archive: Archive, name: str, square_II: Tensor, largest: float) -> None:
    """|E[xᵢxⱼ]| ≤ √(E[xᵢ²]·E[xⱼ²]): what breaks it has directions of negative length."""
    root_I = square_II.diagonal().sqrt()
    for rows in panel_rows(square_II.shape[0]):
        above_PI = square_II[rows, rows.start :].abs()
        above_PI.addr_(root_I[rows], root_I[rows.start :], alpha=-1)
        excess = float(above_PI.amax())
        if excess > _TOLERANCE * largest:
            raise CalibrationError(
                f"array {name!r} of {archive.path} is no second moment E[x xᵀ]: an entry is {excess:.3g} larger than "
                "the diagonal allows, |E[xᵢxⱼ]| ≤ √(E[xᵢ²]·E[xⱼ²])"
            )


def _check_equal(name: str, values: Tensor, other_name: str, others: Tensor) -> None:
    pairs = zip(values.split(PANEL_ROWS), others.split(PANEL_ROWS), strict=True)
    difference, largest = max(_largest(a - b) for a, b in pairs), _largest(values)
    if difference > _TOLERANCE * largest:
        raise CalibrationError(
            f"arrays {name!r} and {other_name!r} are of the same input but differ by {difference:.3g} (the largest "
            f"entry is {largest:.3g}): keep the right one"
        )


def _largest(values: Tensor) -> float:
    """The largest magnitude, without a copy; NaN where there is one."""
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))


def _mean_diagonal(archive: Archive, match: Match) -> float:
    """The mean over inputs of the mean of their diagonal."""
    means = [float(_read_diagonal(archive, match.diagonals[key][0]).mean()) for key in sorted(match.diagonal_only)]
    for key in sorted(match.moments):
        diagonal_I = torch.from_numpy(np.array(archive.read(match.moments[key][0]).diagonal(), dtype=np.float32))
        means.append(float(diagonal_I.mean()))
    return sum(means) / len(means)


def _describe(checkpoint: Checkpoint, archive: Archive, fill: Fill | None) -> CalibrationInfo:
    sha256 = archive.sha256
    return CalibrationInfo(
        model_fingerprint=checkpoint.fingerprint,
        n_layers=checkpoint.n_layers,
        source=json.dumps({"kind": "npz", "sha256": sha256, "fill": fill}),
        samples=0,
        length=0,
        n_tokens=0,
        seed=0,
        token_sha256=sha256,
        dtype="imported",
        batch_tokens=0,
        device_kind="cpu",
        numerics_version=NUMERICS_VERSION,
        torch_version=torch.__version__,
    )
