"""Datasets through the real library: local folders, and hub ids without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compress_core.errors import CalibrationError, ConfigError
from compress_core.text import SPLITS, TextSource, iter_documents, split_text

TEXTS = [f"record {n}\n" for n in range(60)]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of two splits, one of them in two files."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number, part in enumerate((TEXTS[:35], TEXTS[35:50])):
        columns = {"text": [*part, None], "n": list(range(len(part) + 1))}
        pq.write_table(pa.table(columns), folder / f"train-0000{number}-of-00002.parquet")
    pq.write_table(pa.table({"text": TEXTS[50:], "n": list(range(10))}), folder / "test-00000-of-00001.parquet")
    return folder


def _read(path: Path | str, **fields: Any) -> list[str]:
    return list(iter_documents(TextSource("dataset", Path(path), **fields)))


def test_a_folder_of_parquet(folder: Path) -> None:
    stripped = [text.strip() for text in TEXTS]
    assert _read(folder) == stripped[:50]
    assert _read(folder, dataset_split="test") == stripped[50:]
    assert _read(folder, max_documents=7) == stripped[:7]
    source = TextSource("dataset", folder)
    assert sorted("\n\n".join(split_text(source, s) for s in SPLITS).split("\n\n")) == sorted(stripped[:50])


def test_a_folder_of_json_lines_with_another_field(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"n": 1, "body": text}) + "\n" for text in TEXTS))
    assert _read(tmp_path, field="body") == [text.strip() for text in TEXTS]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"field": "body"}, "no column 'body': its columns are text, n"),
        ({"field": "n"}, "'n' is not text"),
        ({"dataset_split": "valid"}, "no split 'valid': it has train, test"),
        ({"config": "en"}, "'en' not found"),
    ],
)
def test_what_a_folder_does_not_have(folder: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        _read(folder, **fields)


def test_a_missing_folder_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no dataset folder.*needs its revision"):
        _read("organisation/name")
    with pytest.raises(CalibrationError, match="cannot read the dataset"):
        _read(tmp_path)


def test_a_damaged_file(folder: Path) -> None:
    (folder / "train-00001-of-00002.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(CalibrationError, match="cannot read the dataset"):
        _read(folder)


def test_a_hub_dataset_without_a_network_is_a_named_error() -> None:
    with pytest.raises(CalibrationError, match=r"cannot read the dataset allenai/c4: .*give its folder"):
        _read("allenai/c4", config="en", revision=COMMIT)


def test_no_code_of_a_dataset_runs(tmp_path: Path, folder: Path) -> None:
    ran = tmp_path / "ran"
    (folder / f"{folder.name}.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(CalibrationError, match="scripts are no longer supported"):
        _read(folder)
    assert not ran.exists()


def test_a_card_cannot_name_files_elsewhere(tmp_path: Path, folder: Path) -> None:
    elsewhere = tmp_path / "secret.jsonl"
    elsewhere.write_text('{"text": "a"}\n')
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {elsewhere}\n---\n"
    (folder / "README.md").write_text(card)
    with pytest.raises(CalibrationError, match=r"names a file that is not its own: .*secret\.jsonl"):
        _read(folder)


def test_a_card_cannot_climb_out_of_a_link(tmp_path: Path, folder: Path) -> None:
    """``set/link/../secret.jsonl`` looks like a file of the folder, and lies beside what the link leads to."""
    (tmp_path / "elsewhere" / "inner").mkdir(parents=True)
    (tmp_path / "elsewhere" / "secret.jsonl").write_text('{"text": "a"}\n')
    (folder / "link").symlink_to(tmp_path / "elsewhere" / "inner")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: link/../secret.jsonl\n---\n"
    )
    with pytest.raises(CalibrationError, match=r"names a file that is not its own: .*secret\.jsonl"):
        _read(folder)


@pytest.mark.parametrize(
    ("fields", "culprit"),
    [
        ({"kind": "dataset"}, "path"),
        ({"kind": "dataset", "path": "a/b", "revision": "main"}, "revision"),
        ({"kind": "dataset", "path": "/data/set", "revision": COMMIT}, "path"),
        ({"kind": "dataset", "path": "a", "dataset_split": "train[:10%]"}, "dataset_split"),
        ({"kind": "file", "path": "a.txt", "config": "en"}, "config"),
        ({"kind": "file", "path": "a.txt", "max_documents": 0}, "max_documents"),
        ({"kind": "stdlib", "max_documents": 5}, "max_documents"),
        ({"kind": "stdlib", "field": "body"}, "field"),
    ],
)
def test_fields_that_do_not_go_together(fields: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ConfigError, match=f"^{culprit}: "):
        TextSource.from_dict(fields)


def test_round_trip() -> None:
    fields: dict[str, Any] = {"config": "en", "revision": COMMIT, "max_documents": 9, "dataset_split": "validation"}
    source = TextSource("dataset", Path("allenai/c4"), **fields)
    assert TextSource.from_dict(json.loads(json.dumps(source.to_dict()))) == source
