"""Read and check the header of a packed file. Torch-free."""

from __future__ import annotations

from pathlib import Path

from compress_core.checkpoint.headers import FileHeader, read_header
from compress_core.errors import CheckpointError, PackedFormatError
from compress_core.pack.description import DESCRIPTION_KEY, PACKED_SUFFIX, ModelDescription


def read_packed_header(path: Path) -> tuple[FileHeader, ModelDescription]:
    """Header and description of a file that holds a whole packed model.

    Raises:
        PackedFormatError: truncated, no packed model, another version, or a matrix whose tensor does not fit its
            description.
    """
    header = _read(path)
    description = describe(header)
    check_tensors(header, description, list(description.matrices))
    return header, description


def read_description(paths: list[Path]) -> ModelDescription:
    """The description of a packed model in one file or in shards (each says the same), checked against their tensors.

    Raises:
        PackedFormatError: as in :func:`read_packed_header`, or a matrix that no shard holds.
    """
    headers = [_read(path) for path in paths]
    description = describe(headers[0])
    found: set[str] = set()
    for header in headers:
        here = [name for name in description.matrices if name + PACKED_SUFFIX in header.tensors]
        check_tensors(header, description, here)
        found.update(here)
    if missing := sorted(set(description.matrices) - found):
        raise PackedFormatError(f"{paths[0]} describes {missing[0]} but no file holds its tensor")
    return description


def describe(header: FileHeader) -> ModelDescription:
    """The description in a file's metadata.

    Raises:
        PackedFormatError: there is none, it is damaged, or of another version.
    """
    if DESCRIPTION_KEY not in header.metadata:
        raise PackedFormatError(f"{header.path} is a safetensors file, but no packed model")
    try:
        return ModelDescription.from_json(header.metadata[DESCRIPTION_KEY])
    except PackedFormatError as error:
        raise PackedFormatError(f"{header.path}: {error}") from error


def check_tensors(header: FileHeader, description: ModelDescription, modules: list[str]) -> None:
    """Each of these matrices has its tensor, of the type and size that its config asks for.

    Raises:
        PackedFormatError: names the tensor.
    """
    for module in modules:
        name, info = module + PACKED_SUFFIX, description.matrices[module]
        if name not in header.tensors:
            raise PackedFormatError(f"{header.path} describes {module} but holds no tensor {name}")
        tensor = header.tensors[name]
        if tensor.dtype != "U8" or tensor.shape != (info.nbytes,):
            raise PackedFormatError(
                f"{header.path}: {name} must be U8 of shape [{info.nbytes}] for a {info.config} matrix of shape "
                f"{list(info.shape)}, it is {tensor.dtype} of shape {list(tensor.shape)}"
            )


def _read(path: Path) -> FileHeader:
    try:
        return read_header(path)
    except CheckpointError as error:
        raise PackedFormatError(str(error)) from error
