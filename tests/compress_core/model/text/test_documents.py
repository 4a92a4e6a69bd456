"""Documents of files: gzip, Parquet, plain text that is streamed, and what cannot be read."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress_core.errors import CalibrationError
from compress_core.text import SPLITS, WHOLE, TextSource, iter_documents, source, split_text
from compress_core.text import documents as module

TEXTS = [f"document {n}\nin two lines, é漢" for n in range(120)]


def _table(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=50)
    return path


def test_every_format_gives_the_same_documents_in_the_same_splits(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"body": text}) + "\n" for text in TEXTS)
    (tmp_path / "x.jsonl").write_text(lines)
    with gzip.open(tmp_path / "x.json.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    _table(tmp_path / "x.parquet", {"id": list(range(len(TEXTS) + 1)), "body": [None, *TEXTS]})
    sources = [TextSource("file", tmp_path / name, field="body") for name in ("x.jsonl", "x.json.gz", "x.parquet")]
    assert [list(iter_documents(s)) for s in sources] == [TEXTS] * 3
    for split in (*SPLITS, WHOLE):
        assert len({split_text(s, split) for s in sources}) == 1


def test_a_prefix_is_all_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "no JSON at all\n")
    few = TextSource("file", path, max_documents=30)
    assert list(iter_documents(few)) == TEXTS[:30]
    parts = [split_text(few, split).split("\n\n") for split in SPLITS]
    assert sorted(text for part in parts for text in part) == sorted(TEXTS[:30])
    assert split_text(few, WHOLE) == "\n\n".join(TEXTS[:30])
    with pytest.raises(CalibrationError, match="line 121"):
        split_text(TextSource("file", path), "measure")


def test_a_large_file_is_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    line = json.dumps({"text": "x" * 1000}) + "\n"
    path.write_text(line * 20_000)  # 20 MB
    tracemalloc.start()
    try:
        assert sum(1 for _ in module.iter_file(path, "text")) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_split_that_holds_too_much_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    path.write_text("<|endoftext|>".join(TEXTS))
    monkeypatch.setattr(source, "MAX_CHARACTERS", 500)
    for split in ("calibrate", WHOLE):
        with pytest.raises(CalibrationError, match="set max_documents"):
            split_text(TextSource("file", path), split)  # type: ignore[arg-type]
    assert split_text(TextSource("file", path, max_documents=5), WHOLE) == "\n\n".join(TEXTS[:5])


def _cut_at_once(text: str) -> Iterator[str]:
    """What the streamed cut must equal: the whole text in memory."""
    if "<|endoftext|>" in text:
        yield from text.split("<|endoftext|>")
        return
    lines = text.split("\n")
    titles = [n for n, line in enumerate(lines) if module._WIKITEXT_TITLE.match(line)]
    if len(titles) >= 4:
        yield from ("\n".join(lines[a:b]) for a, b in pairwise([0, *titles, len(lines)]))
        return
    block: list[str] = []
    for paragraph in text.split("\n\n"):
        block.append(paragraph)
        if sum(map(len, block)) >= module._MIN_DOCUMENT:
            yield "\n\n".join(block)
            block = []
    yield "\n\n".join(block)


PIECES = st.sampled_from(
    ["\n", "\n", "\n\n", "<|endoftext|>", " = T = ", " = = S = = ", "é", "x" * 900, "\r\n", " ", "\u2028"]
)


@given(st.lists(PIECES, max_size=40), st.booleans())
def test_streamed_cuts_are_those_of_the_whole_text(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], separated: bool
) -> None:
    text = "".join(piece for piece in pieces if separated or piece != "<|endoftext|>")
    path = tmp_path_factory.getbasetemp() / "cut.txt"
    path.write_bytes(text.encode())
    expected = [stripped for document in _cut_at_once(text) if (stripped := document.strip())]
    assert list(iter_documents(TextSource("file", path))) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl.gz", b"not gzip", "cannot read"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9000, mtime=0)[:-20], "cannot read"),
        ("x.parquet", b"PAR1 is not enough", "cannot read"),
        ("x.csv", b"a,b\n", r"\.csv is none of \.txt"),
        ("x.txt.zst", b"", r"\.zst is none of"),
        ("x.jsonl", b"x" * 4001, "line is longer"),
    ],
)
def test_unreadable(tmp_path: Path, name: str, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_LINE", 4000)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        list(islice(iter_documents(TextSource("file", path)), 10_000))


@pytest.mark.parametrize(("field", "message"), [("nope", "no column 'nope'.*text, n"), ("n", "'n' is int64, not text")])
def test_parquet_without_that_text(tmp_path: Path, field: str, message: str) -> None:
    path = _table(tmp_path / "x.parquet", {"text": ["a"], "n": [1]})
    with pytest.raises(CalibrationError, match=message):
        list(iter_documents(TextSource("file", path, field=field)))
