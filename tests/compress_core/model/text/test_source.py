"""Text sources and their four disjoint splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress_core.errors import CalibrationError, ConfigError
from compress_core.text import SPLITS, WHOLE, TextSource, split_text
from compress_core.text.source import iter_documents, split_of


def _jsonl(path: Path, texts: list[str]) -> TextSource:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return TextSource("file", path)


def test_every_document_is_in_exactly_one_split(tmp_path: Path) -> None:
    documents = [f"document {n}\nwith two lines" for n in range(400)]
    source = _jsonl(tmp_path / "x.jsonl", documents)
    parts = {split: split_text(source, split).split("\n\n") for split in SPLITS}
    assert sorted(document for part in parts.values() for document in part) == sorted(documents)
    assert all(len(part) > 30 for part in parts.values())
    assert len(parts["calibrate"]) > len(parts["select"])


def test_equal_documents_share_a_split_and_more_documents_move_none(tmp_path: Path) -> None:
    first = _jsonl(tmp_path / "a.jsonl", [f"text {n}" for n in range(50)])
    more = _jsonl(tmp_path / "b.jsonl", [f"text {n}" for n in reversed(range(90))] + ["text 7"] * 3)
    for split in SPLITS:
        assert set(split_text(first, split).split("\n\n")) <= set(split_text(more, split).split("\n\n"))


def test_plain_text_is_cut_at_separators_titles_or_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("one<|endoftext|>two\n\nstill two<|endoftext|>\n")
    assert list(iter_documents(TextSource("file", path))) == ["one", "two\n\nstill two"]
    articles = "".join(f" = Title {n} = \n\n text\u2028of {n}\n\n = = Section = = \n\n more\n" for n in range(5))
    path.write_text(articles)
    documents = list(iter_documents(TextSource("file", path)))
    assert [d.split("\n")[0].strip() for d in documents] == [f"= Title {n} =" for n in range(5)]
    paragraphs = [f"{n} " + "x" * 900 for n in range(10)]
    path.write_text("\n\n".join(paragraphs))
    documents = list(iter_documents(TextSource("file", path)))
    assert [d.count("\n\n") for d in documents] == [2, 2, 2, 0]
    assert "\n\n".join(documents) == "\n\n".join(paragraphs)


def test_the_whole_of_a_text_file_is_untouched(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\n a \r\n\n\n b\x0b \n")
    assert split_text(TextSource("file", path), WHOLE) == "\n a \r\n\n\n b\x0b \n"


def test_real_wikitext_splits_by_article(shared_data: Path) -> None:
    source = TextSource("file", shared_data / "wikitext-2-raw" / "wiki.valid.raw")
    documents = list(iter_documents(source))
    assert len(documents) == 60
    assert {split_of(document) for document in documents} == set(SPLITS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "cannot read"),
        ("x.txt", b"\xff\xfe\x00", "cannot read"),
        ("x.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2.*field 'text'"),
        ("x.jsonl", b'{"text": "a"}\nnonsense\n', "line 2"),
        ("x.jsonl", b'{"text": 5}\n', "not text"),
        ("x.jsonl", b"[]\n", "line 1"),
        ("x.txt", b"  \n\n ", "nothing for the split"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        split_text(TextSource("file", path), "measure")


def test_bad_sources() -> None:
    for bad in ({"kind": "hub"}, {"kind": "file"}, {"kind": "stdlib", "path": "x"}, {"kind": "stdlib", "where": "x"}):
        with pytest.raises(ConfigError):
            TextSource.from_dict(bad)
    with pytest.raises(ConfigError, match="unknown split"):
        split_text(TextSource("file", Path("x")), "train")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no split 'whole'"):
        split_text(TextSource(), WHOLE)


def test_source_round_trip(tmp_path: Path) -> None:
    for source in (TextSource(), TextSource("file", tmp_path / "x.jsonl", field="body")):
        assert TextSource.from_dict(source.to_dict()) == source
