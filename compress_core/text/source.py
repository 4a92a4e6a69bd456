"""TextSource: where text comes from, and its four disjoint splits.

Splits are made of whole documents. A document goes to the split that a hash of its text names, so equal documents
never land in two splits, and adding documents moves no other. That holds for every source: a file, or any split of a
dataset.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, Self

from compress_core.errors import CalibrationError, ConfigError
from compress_core.hub import is_commit, is_hub_id
from compress_core.text import documents, stdlib

Split = Literal["calibrate", "measure", "select", "report", "whole"]
Kind = Literal["stdlib", "file", "dataset"]

#: the four disjoint splits
SPLITS: tuple[Split, ...] = ("calibrate", "measure", "select", "report")
#: the whole text: for a file that is a held-out set by itself; its disjointness is up to the caller
WHOLE: Final = "whole"
#: upper bounds of the document hash (in percent) of the splits, in the order of SPLITS
_UPPER = (40, 60, 75, 100)
#: what a split may hold: 64 million characters are minutes of tokenising, and far more than any calibration asks for
MAX_CHARACTERS = 64_000_000
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")


@dataclass(frozen=True, slots=True)
class TextSource:
    """``stdlib``: the standard library's documentation and sources, built in. ``file``: see ``documents.iter_file``.
    ``dataset``: a local folder that the ``datasets`` library reads, or a hub dataset at a pinned revision.

    Raises:
        ConfigError: an unknown kind, or fields that do not go together; names the field first.
    """

    kind: Kind = "stdlib"
    #: a file; a dataset's folder, or its hub id ORGANISATION/NAME
    path: Path | None = None
    #: field of a JSON record, column of a Parquet file or a dataset, that holds the text
    field: str = "text"
    #: a dataset's configuration, such as "en" of C4
    config: str | None = None
    #: which of the dataset's own splits to read; ours are made from it
    dataset_split: str = "train"
    #: commit of a hub dataset, 40 hex digits; null = a local folder
    revision: str | None = None
    #: read no more than so many documents, the first ones in the source's order; null = all
    max_documents: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("stdlib", "file", "dataset"):
            raise ConfigError(f"kind: unknown text source {self.kind!r}, choose stdlib, file or dataset")
        if (self.kind == "stdlib") != (self.path is None):
            raise ConfigError(
                "path: stdlib has none" if self.kind == "stdlib" else f"path: a text of kind {self.kind} needs one"
            )
        if self.path is not None:
            object.__setattr__(self, "path", Path(self.path))
        defaults = {f.name: f.default for f in fields(self)}
        for names, kinds in (
            (("config", "dataset_split", "revision"), ("dataset",)),
            (("field", "max_documents"), ("file", "dataset")),
        ):
            for name in names:
                if self.kind not in kinds and getattr(self, name) != defaults[name]:
                    raise ConfigError(f"{name}: only for a text of kind {' or '.join(kinds)}")
        if self.max_documents is not None and self.max_documents < 1:
            raise ConfigError(f"max_documents: must be 1 or more, not {self.max_documents}")
        if self.revision is not None:
            if not is_commit(self.revision):
                raise ConfigError(f"revision: the 40 hex digits of a commit pin a hub dataset, not {self.revision!r}")
            if not is_hub_id(str(self.path)):
                raise ConfigError(f"path: {self.path} has a revision but is no hub id ORGANISATION/NAME")
        if not _SPLIT_NAME.fullmatch(self.dataset_split):
            raise ConfigError(f"dataset_split: {self.dataset_split!r} names no split; it is a name such as train")

    @property
    def name(self) -> str:
        """How errors name it: the path, with a dataset's configuration and split."""
        if self.kind != "dataset":
            return self.kind if self.path is None else str(self.path)
        return f"{self.path}{'' if self.config is None else f' ({self.config})'}, split {self.dataset_split}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without what a kind has no use for or leaves at its default; ``from_dict`` inverts it."""
        if self.path is None:
            return {"kind": self.kind}
        always = {"kind": self.kind, "path": str(self.path), "field": self.field}
        values = asdict(self) | always
        if self.kind != "dataset":
            del values["dataset_split"]
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """
        Raises:
            ConfigError: an unknown field, or what the constructor refuses.
        """
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(f"unknown text source field {unknown[0]!r}: the fields are {', '.join(known)}")
        return cls(**values)


def split_text(source: TextSource, split: Split) -> str:
    """The text of one split, its documents in their original order, joined by blank lines.

    Documents are read one by one, and only this split's are kept. The whole of a plain text file is the file's text,
    character for character.

    Raises:
        ConfigError: an unknown split.
        CalibrationError: the source cannot be read, or the split is empty or holds more than ``MAX_CHARACTERS``.
    """
    if split not in (*SPLITS, WHOLE):
        raise ConfigError(f"unknown split {split!r}: choose one of {', '.join((*SPLITS, WHOLE))}")
    if source.kind == "stdlib":
        if split == WHOLE:
            raise ConfigError(
                "the standard library's text has no split 'whole': the demo model was trained on most of it"
            )
        return stdlib.split_text(split)
    assert source.path is not None
    if split == WHOLE and source.kind == "file" and source.max_documents is None and documents.is_plain(source.path):
        text = documents.read_plain(source.path, limit=MAX_CHARACTERS)
    else:
        text = "\n\n".join(_of_split(source, split))
    if not text:
        raise CalibrationError(f"{source.name} leaves nothing for the split {split!r}: it has too few documents")
    return text


def iter_documents(source: TextSource) -> Iterator[str]:
    """The documents of a file or a dataset, stripped, without empty ones, read as they are asked for.

    Raises:
        CalibrationError: not readable, not UTF-8, or a record without the field.
    """
    assert source.path is not None
    if source.kind == "dataset":
        from compress_core.text.dataset import iter_dataset

        texts = iter_dataset(
            str(source.path),
            field=source.field,
            config=source.config,
            split=source.dataset_split,
            revision=source.revision,
        )
    else:
        texts = documents.iter_file(source.path, source.field)
    return itertools.islice((stripped for text in texts if (stripped := text.strip())), source.max_documents)


def split_of(document: str) -> Split:
    """The split that a document belongs to: a function of its text alone."""
    place = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") % 100
    return next(split for split, upper in zip(SPLITS, _UPPER, strict=True) if place < upper)


def _of_split(source: TextSource, split: Split) -> list[str]:
    kept: list[str] = []
    n_characters = 0
    for number, document in enumerate(iter_documents(source), 1):
        if split not in (WHOLE, split_of(document)):
            continue
        n_characters += len(document)
        if n_characters > MAX_CHARACTERS:
            raise CalibrationError(
                f"the split {split!r} of {source.name} holds more than {MAX_CHARACTERS // 10**6} million characters in "
                f"its first {number} documents: set max_documents to fewer, they are read from the beginning"
            )
        kept.append(document)
    return kept
