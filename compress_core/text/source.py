"""TextSource: where text comes from, and its four disjoint splits.

Splits are made of whole documents. A document goes to the split that a hash of its text names, so equal documents
never land in two splits, and adding documents moves no other.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, Self

from compress_core.errors import CalibrationError, ConfigError
from compress_core.text import stdlib

Split = Literal["calibrate", "measure", "select", "report", "whole"]

#: the four disjoint splits
SPLITS: tuple[Split, ...] = ("calibrate", "measure", "select", "report")
#: the whole text: for a file that is a held-out set by itself; its disjointness is up to the caller
WHOLE: Final = "whole"
#: upper bounds of the document hash (in percent) of the splits, in the order of SPLITS
_UPPER = (40, 60, 75, 100)
#: a plain text without separators is cut at blank lines into documents of at least this many characters
_MIN_DOCUMENT = 2000
_SEPARATOR = "<|endoftext|>"
#: a title of a WikiText article: `` = Title = ``; sections have more than one ``=``
_WIKITEXT_TITLE = re.compile(r"^ = [^=].*[^=] = $")


@dataclass(frozen=True, slots=True)
class TextSource:
    """``stdlib``: the standard library's documentation and sources, built in. ``file``: a ``.txt`` or a ``.jsonl``.

    Raises:
        ConfigError: an unknown kind, or a path that is missing or not wanted.
    """

    kind: Literal["stdlib", "file"] = "stdlib"
    path: Path | None = None
    #: field of a JSONL record that holds the text
    field: str = "text"

    def __post_init__(self) -> None:
        if self.kind not in ("stdlib", "file"):
            raise ConfigError(f"unknown text source {self.kind!r}: choose stdlib or file")
        if (self.kind == "file") != (self.path is not None):
            raise ConfigError(
                "a text source of kind file needs a path" if self.kind == "file" else "stdlib has no path"
            )
        if self.path is not None:
            object.__setattr__(self, "path", Path(self.path))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; ``from_dict`` inverts it."""
        return (
            {"kind": self.kind}
            if self.path is None
            else {"kind": self.kind, "path": str(self.path), "field": self.field}
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        if unknown := sorted(set(values) - {"kind", "path", "field"}):
            raise ConfigError(f"unknown text source field {unknown[0]!r}: the fields are kind, path, field")
        return cls(**values)


def split_text(source: TextSource, split: Split) -> str:
    """The text of one split, its documents in their original order, joined by blank lines.

    The whole of a ``.txt`` is the file's text, character for character.

    Raises:
        ConfigError: an unknown split.
        CalibrationError: the file cannot be read, or the split is empty.
    """
    if split not in (*SPLITS, WHOLE):
        raise ConfigError(f"unknown split {split!r}: choose one of {', '.join((*SPLITS, WHOLE))}")
    if source.kind == "stdlib":
        if split == WHOLE:
            raise ConfigError(
                "the standard library's text has no split 'whole': the demo model was trained on most of it"
            )
        text = stdlib.split_text(split)
        return text
    assert source.path is not None
    if split == WHOLE and source.path.suffix != ".jsonl":
        text = _read(source.path)
    else:
        text = "\n\n".join(document for document in read_documents(source) if split in (WHOLE, split_of(document)))
    if not text:
        raise CalibrationError(f"{source.path} leaves nothing for the split {split!r}: it has too few documents")
    return text


def split_of(document: str) -> Split:
    """The split that a document belongs to: a function of its text alone."""
    place = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") % 100
    return next(split for split, upper in zip(SPLITS, _UPPER, strict=True) if place < upper)


def read_documents(source: TextSource) -> list[str]:
    """The documents of a file, stripped, without empty ones.

    ``.jsonl``: one a line. ``.txt``: between ``<|endoftext|>``; else WikiText articles; else runs of blank-line
    blocks of about 2,000 characters. Lines end at ``\\n`` alone.

    Raises:
        CalibrationError: not readable, not UTF-8, or a record without the field.
    """
    assert source.path is not None
    text = _read(source.path)
    documents = _jsonl(source, text) if source.path.suffix == ".jsonl" else _plain(text)
    return [stripped for document in documents if (stripped := document.strip())]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"cannot read the text {path}: {error}") from error


def _jsonl(source: TextSource, text: str) -> list[str]:
    documents = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            document = record[source.field]
        except (ValueError, KeyError, TypeError) as error:
            raise CalibrationError(
                f"{source.path}, line {number}: expected a JSON object with the field {source.field!r}"
            ) from error
        if not isinstance(document, str):
            raise CalibrationError(f"{source.path}, line {number}: the field {source.field!r} is not text")
        documents.append(document)
    return documents


def _plain(text: str) -> list[str]:
    if _SEPARATOR in text:
        return text.split(_SEPARATOR)
    lines = text.split("\n")
    titles = [number for number, line in enumerate(lines) if _WIKITEXT_TITLE.match(line)]
    if len(titles) >= 4:
        bounds = [0, *titles, len(lines)]
        return ["\n".join(lines[a:b]) for a, b in pairwise(bounds)]
    documents: list[str] = []
    block: list[str] = []
    n_characters = 0
    for paragraph in text.split("\n\n"):
        block.append(paragraph)
        n_characters += len(paragraph)
        if n_characters >= _MIN_DOCUMENT:
            documents.append("\n\n".join(block))
            block, n_characters = [], 0
    return [*documents, "\n\n".join(block)]
