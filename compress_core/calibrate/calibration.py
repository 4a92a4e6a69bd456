"""Calibration: the stored H = E[x xᵀ] of every distinct input, and where it came from.

A folder::

    calibration.json          CalibrationInfo, what is kept, and a report; written last: a folder with it is complete
    tokens.safetensors        the exact token ids (not where H was imported)
    layer-00000.safetensors   the upper half of H by input name ("qkv", "down", "down.3"), row by row: row i's entries
                              i … n−1, n(n+1)/2 float32 in all; __metadata__ binds the file to the calibration

It is opened by the small files and the layers' headers alone; an H is read when it is asked for.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from compress_core.calibrate.half import read_square
from compress_core.calibrate.info import CalibrationInfo
from compress_core.calibrate.inputs import input_name
from compress_core.calibrate.layer_file import layer_inputs, layer_path, open_layer
from compress_core.calibrate.recipe import Recipe, read_recipe
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.headers import FileHeader
from compress_core.errors import CalibrationError
from compress_core.matrix import MatrixKey


class Calibration:
    """A folder of Hessians that fits a checkpoint; a ``HessianSource``."""

    def __init__(self, path: Path, recipe: Recipe, layers: list[tuple[FileHeader, dict[str, int]]]) -> None:
        self.path = path
        self.recipe = recipe
        self._layers = layers

    @property
    def info(self) -> CalibrationInfo:
        return self.recipe.info

    @classmethod
    def open(cls, path: Path | str, checkpoint: Checkpoint) -> Calibration:
        """Open a folder and verify it against the checkpoint it is used with.

        Raises:
            CalibrationError: not there, not complete, another form, damaged, made from a model of other shapes or
                weights, or it keeps its tokens alone.
        """
        path = Path(path)
        recipe = read_recipe(path, checkpoint)
        if recipe.keeps != "hessians":
            raise CalibrationError(f"{path} keeps its tokens alone: its H is computed anew by StreamedCalibration")
        layers = []
        for layer_idx in range(checkpoint.n_layers):
            inputs = layer_inputs(checkpoint, layer_idx)
            layers.append((open_layer(layer_path(path, layer_idx), recipe.info, layer_idx, inputs), inputs))
        return cls(path, recipe, layers)

    def hessian(self, key: MatrixKey) -> Tensor:
        """H of the matrix's input: (in, in) float32, symmetric, on the CPU. Memory: the square alone.

        Raises:
            CalibrationError: there is none for this matrix.
            NonFiniteValues: the file is damaged.
        """
        name = input_name(key)
        if not 0 <= key.layer_idx < len(self._layers) or name not in self._layers[key.layer_idx][1]:
            raise CalibrationError(f"{self.path} has no H for matrix {key}")
        header, inputs = self._layers[key.layer_idx]
        return read_square(header.tensors[name], inputs[name])

    def close(self) -> None:
        """Nothing to let go of: the folder stays."""
