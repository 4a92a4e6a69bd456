"""Documents of local files: plain text, JSON lines (also gzipped), Parquet; read one at a time.

No file is held whole: lines are read as documents are asked for, so that a prefix of a large file costs a prefix.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from compress_core.errors import CalibrationError
from compress_core.regular import open_regular

#: one JSON record a line; hubs name such files .json as well
JSON_LINES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
PARQUET = ".parquet"
#: compressed otherwise, or no text at all: refused by name instead of failing as bad UTF-8
UNREADABLE = (".gz", ".zst", ".xz", ".bz2", ".zip", ".tar", ".7z", ".arrow", ".csv", ".pdf", ".bin", ".safetensors")
#: a plain text without separators is cut at blank lines into documents of at least this many characters
_MIN_DOCUMENT = 2000
_SEPARATOR = "<|endoftext|>"
#: a title of a WikiText article: `` = Title = ``; sections have more than one ``=``
_WIKITEXT_TITLE = re.compile(r"^ = [^=].*[^=] = $")
_MIN_TITLES = 4
#: how a plain text is cut shows in its first so many bytes
_LOOK_BYTES = 64_000_000
#: no line of a text is longer
_MAX_LINE = 64_000_000
_BATCH_ROWS = 1024


def is_plain(path: Path) -> bool:
    """Whether a file is plain text, neither JSON lines nor Parquet."""
    return not path.name.endswith((*JSON_LINES, PARQUET))


def unreadable_suffix(path: Path) -> str | None:
    """The suffix of a file that is surely no text; None where it may be one."""
    if not is_plain(path):
        return None
    return next((suffix for suffix in UNREADABLE if path.name.endswith(suffix)), None)


def iter_file(path: Path, field: str) -> Iterator[str]:
    """The documents of a file, as they stand.

    JSON lines: ``field`` of each record. Parquet: each value of the column ``field``. Else plain text, cut between
    ``<|endoftext|>``; else into WikiText articles; else into runs of blank-line blocks of about 2,000 characters. Lines
    end at ``\\n`` alone.

    Raises:
        CalibrationError: not readable, not UTF-8, or a record without the field.
    """
    if (suffix := unreadable_suffix(path)) is not None:
        raise CalibrationError(f"cannot read the text {path}: {suffix} is none of {_readable()}")
    if path.name.endswith(JSON_LINES):
        yield from _json_lines(path, field)
    elif path.name.endswith(PARQUET):
        yield from _parquet(path, field)
    else:
        yield from _plain(path)


def read_plain(path: Path, *, limit: int) -> str:
    """All of a plain text, character for character.

    Raises:
        CalibrationError: not readable, not UTF-8, or larger than ``limit`` bytes.
    """
    with _reading(path):
        with open_regular(path) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise CalibrationError(
                f"{path} is larger than {limit // 10**6} MB: set max_documents, or cut the part out that is wanted"
            )
        return content.decode("utf-8")


def _json_lines(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)[field]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CalibrationError(f"{path}, line {number}: expected a JSON object with the field {field!r}") from error
        if not isinstance(document, str):
            raise CalibrationError(f"{path}, line {number}: the field {field!r} is not text")
        yield document


def _parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow.parquet as pq
    from pyarrow import types

    with _reading(path), open_regular(path) as opened, pq.ParquetFile(opened) as file:
        schema = file.schema_arrow
        if field not in schema.names:
            raise CalibrationError(f"{path} has no column {field!r}: its columns are {', '.join(schema.names)}")
        kind = schema.field(field).type
        if not (types.is_string(kind) or types.is_large_string(kind)):
            raise CalibrationError(f"{path}: the column {field!r} is {kind}, not text")
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[field]):
            # a null is no document
            yield from (document for document in batch.column(0).to_pylist() if document is not None)


def _plain(path: Path) -> Iterator[str]:
    cut = _how_to_cut(path)
    block: list[str] = []
    if cut == "separators":
        for line in _lines(path):
            first, *others = line.split(_SEPARATOR)
            block.append(first)
            for other in others:
                yield "".join(block)
                block = [other]
        yield "".join(block)
    elif cut == "titles":
        for line in _lines(path):
            if _WIKITEXT_TITLE.match(line.removesuffix("\n")):
                yield "".join(block)
                block = []
            block.append(line)
        yield "".join(block)
    else:
        n_characters = 0
        for paragraph in _paragraphs(path):
            block.append(paragraph)
            n_characters += len(paragraph)
            if n_characters >= _MIN_DOCUMENT:
                yield "\n\n".join(block)
                block, n_characters = [], 0
        yield "\n\n".join(block)


def _how_to_cut(path: Path) -> str:
    n_titles = n_bytes = 0
    for line in _lines(path):
        if _SEPARATOR in line:
            return "separators"
        n_titles += _WIKITEXT_TITLE.match(line.removesuffix("\n")) is not None
        n_bytes += len(line)
        if n_bytes > _LOOK_BYTES:
            break
    return "titles" if n_titles >= _MIN_TITLES else "paragraphs"


def _paragraphs(path: Path) -> Iterator[str]:
    """What ``text.split("\\n\\n")`` would give, but for line ends at the end of the text."""
    lines: list[str] = []
    for line in _lines(path):
        stripped = line.removesuffix("\n")
        # the first line of a paragraph may be empty: three line ends in a row
        if lines and not stripped:
            yield "\n".join(lines)
            lines = []
        else:
            lines.append(stripped)
    yield "\n".join(lines)


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ``\\n``."""
    with _reading(path), _open(path) as file:
        # readline by length: a text without line ends is refused before it fills the memory
        while line := file.readline(_MAX_LINE + 1):
            if len(line) > _MAX_LINE:
                raise CalibrationError(f"cannot read the text {path}: a line is longer than {_MAX_LINE // 10**6} MB")
            yield line.decode("utf-8")


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    with open_regular(path) as file:
        if path.suffix != ".gz":
            yield file
            return
        with gzip.open(file) as unpacked:  # which leaves the file below it open
            yield cast(IO[bytes], unpacked)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, ValueError) as error:
        # pyarrow's errors of damaged files are ValueErrors and OSErrors
        raise CalibrationError(f"cannot read the text {path}: {error}") from error


def _readable() -> str:
    return ", ".join((".txt", *JSON_LINES, PARQUET))
