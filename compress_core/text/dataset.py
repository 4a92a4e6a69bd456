"""Documents of a dataset: a local folder or a hub dataset, read through the ``datasets`` library.

It is streamed: records come one by one in the dataset's own order, and of a hub dataset nothing is fetched but what is
read. Loading scripts are refused by the library (4.0 and later), so that no code of a dataset ever runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress_core.errors import CalibrationError

#: errors that the library raises or lets through: Python's own, and those of the packages it stands on
_BUILT_IN = (OSError, EOFError, ValueError, TypeError, RuntimeError, LookupError)
_BELOW = frozenset({"datasets", "pyarrow", "huggingface_hub", "httpx", "httpcore", "fsspec", "aiohttp", "zlib"})


def iter_dataset(path: str, *, field: str, config: str | None, split: str, revision: str | None) -> Iterator[str]:
    """Each record's ``field``; records without text in it (null) are left out.

    Args:
        path: a folder, or with a revision a hub id.

    Raises:
        CalibrationError: absent, unreachable, ambiguous, scripted, or without that split or column of text.
    """
    if revision is None and not Path(path).is_dir():
        raise CalibrationError(f"there is no dataset folder {path}; a hub dataset needs its revision (40 hex digits)")
    if revision is not None and Path(path).exists():
        # the library would read it instead, whatever the revision says, and wherever it lies
        raise CalibrationError(f"{path} is meant as a hub dataset, but a local folder of that name lies here")
    with _reading(path, hub=revision is not None):
        records = _open(path, config=config, split=split, revision=revision)
        known = records.column_names
        if known is not None:
            _check_column(path, field, known)
            records = records.select_columns([field])
        for record in records:
            _check_column(path, field, list(record))
            text = record[field]
            if text is None:
                continue
            if not isinstance(text, str):
                raise CalibrationError(f"dataset {path}: the column {field!r} is not text")
            yield text


def _open(path: str, *, config: str | None, split: str, revision: str | None) -> Any:
    from datasets import load_dataset_builder

    if revision is None and (Path(path) / "state.json").exists():
        raise CalibrationError(f"{path} was written by save_to_disk: write it as Parquet (to_parquet) instead")
    builder = load_dataset_builder(path, name=config, revision=revision)
    _check_files(path, builder.config.data_files, local=revision is None)
    known = list(builder.info.splits or builder.config.data_files or ())
    if known and split not in known:
        raise CalibrationError(f"dataset {path} has no split {split!r}: it has {', '.join(map(str, known))}")
    return builder.as_streaming_dataset(split=split)


def _check_files(path: str, data_files: Any, *, local: bool) -> None:
    """A dataset's card may name files anywhere: only the dataset's own are read.

    Where links in a local folder lead is up to the caller. But ``link/../file`` is beside what the link leads to, and
    not in the folder, as its spelling has it: no path that climbs is the dataset's own.
    """
    root = os.path.abspath(path) + os.sep
    for files in (data_files or {}).values():
        for file in map(str, files):
            within = os.path.abspath(file).startswith(root) and ".." not in Path(file).parts
            own = within if local else file.startswith(f"hf://datasets/{path}@")
            if not own:
                raise CalibrationError(f"dataset {path} names a file that is not its own: {file}")


def _check_column(path: str, field: str, columns: list[str]) -> None:
    if field not in columns:
        raise CalibrationError(f"dataset {path} has no column {field!r}: its columns are {', '.join(columns)}")


@contextmanager
def _reading(path: str, *, hub: bool) -> Iterator[None]:
    """The library raises errors of many kinds, also of the libraries below it: one name for all."""
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise CalibrationError(f"cannot read the dataset {path}: the package datasets is missing here") from error
    try:
        yield
    except Exception as error:
        if not isinstance(error, _BUILT_IN) and type(error).__module__.partition(".")[0] not in _BELOW:
            raise
        cure = ". Where there is no network, download it elsewhere and give its folder" if hub else ""
        raise CalibrationError(f"cannot read the dataset {path}: {type(error).__name__}: {error}{cure}") from error
