"""Read and check the headers of a packed model's files. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compress_core.checkpoint.headers import FileHeader, TensorHeader, read_header
from compress_core.errors import CheckpointError, PackedFormatError
from compress_core.pack.description import DESCRIPTION_KEY, PACKED_SUFFIX, ModelDescription


def read_packed(paths: Sequence[Path]) -> tuple[dict[str, TensorHeader], ModelDescription]:
    """Every tensor of a packed model's files, and what the files together say about its matrices.

    A file describes its own matrices, or (written by ``save_pretrained``) all of them.

    Raises:
        PackedFormatError: truncated, no packed model, another version, files of different models, a matrix whose
            tensor is in no file or does not fit its description, or a tensor that is in two.
    """
    tensors: dict[str, TensorHeader] = {}
    whole: ModelDescription | None = None
    for path in paths:
        header = _read(path)
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise PackedFormatError(f"{name} is in {tensors[name].file} and in {path}")
            tensors[name] = tensor
        description = _describe(header)
        whole = description if whole is None else _together(whole, description, path)
    assert whole is not None, "a packed model has a file"
    _check_tensors(paths, tensors, whole)
    return tensors, whole


def _describe(header: FileHeader) -> ModelDescription:
    if DESCRIPTION_KEY not in header.metadata:
        raise PackedFormatError(f"{header.path} is a safetensors file, but no packed model")
    try:
        return ModelDescription.from_json(header.metadata[DESCRIPTION_KEY])
    except PackedFormatError as error:
        raise PackedFormatError(f"{header.path}: {error}") from error


def _together(whole: ModelDescription, part: ModelDescription, path: Path) -> ModelDescription:
    both = {**whole.matrices, **part.matrices}
    if any(both[name] != info for name, info in whole.matrices.items()) or replace(whole, matrices=both) != replace(
        part, matrices=both
    ):
        raise PackedFormatError(
            f"{path} belongs to another model than the files before it: their descriptions disagree"
        )
    return replace(whole, matrices=both)


def _check_tensors(paths: Sequence[Path], tensors: dict[str, TensorHeader], description: ModelDescription) -> None:
    """Each matrix has its tensor, of the type and size that its config asks for."""
    for module, info in description.matrices.items():
        name = module + PACKED_SUFFIX
        tensor = tensors.get(name)
        if tensor is None:
            beside = f" nor does any of the {len(paths) - 1} files beside it" if len(paths) > 1 else ""
            raise PackedFormatError(f"{paths[0]} describes {module} but holds no tensor {name}{beside}")
        if tensor.dtype != "U8" or tensor.shape != (info.nbytes,):
            raise PackedFormatError(
                f"{tensor.file}: {name} must be U8 of shape [{info.nbytes}] for a {info.config} matrix of shape "
                f"{list(info.shape)}, it is {tensor.dtype} of shape {list(tensor.shape)}"
            )


def _read(path: Path) -> FileHeader:
    try:
        return read_header(path)
    except CheckpointError as error:
        raise PackedFormatError(str(error)) from error
