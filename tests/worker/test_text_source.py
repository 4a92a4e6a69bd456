"""From a job's text to what is read: paths are looked up again where the job runs."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress_core.errors import CalibrationError
from compress_core.text import TextSource
from results_db.errors import PathNotAllowed, PathNotUsable
from results_db.params import DatasetSpec, TextSpec, WindowSpec
from results_db.settings import Settings
from worker.inputs import draw_windows, text_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def context(tmp_path: Path) -> Any:
    return SimpleNamespace(settings=Settings(var_dir=tmp_path / "var", model_roots=(tmp_path / "data",)))


def test_every_field_arrives(context: Any, tmp_path: Path) -> None:
    path = tmp_path / "data" / "x.parquet"
    assert text_source(context, TextSpec()) == TextSource()
    given = TextSpec(kind="file", path=str(path), field="content", max_documents=3)
    assert text_source(context, given) == TextSource("file", path, field="content", max_documents=3)
    folder = DatasetSpec(kind="dataset", path=str(path.parent), dataset_split="test", split="whole")
    assert text_source(context, folder) == TextSource("dataset", path.parent, dataset_split="test")
    hub = TextSpec(kind="dataset", path="allenai/c4", config="en", revision=COMMIT)
    assert text_source(context, hub) == TextSource("dataset", Path("allenai/c4"), config="en", revision=COMMIT)


@pytest.mark.parametrize("kind", ["file", "dataset"])
def test_paths_outside_the_roots_are_refused(context: Any, tmp_path: Path, kind: Any) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path)
    for path in (tmp_path / "x.txt", tmp_path / "data" / "link" / "x.txt"):
        with pytest.raises(PathNotAllowed):
            text_source(context, TextSpec(kind=kind, path=str(path)))


LINKS = {
    "a file": ("train.jsonl", "x.jsonl"),
    "a file deeper down": ("en/0/train.jsonl", "x.jsonl"),
    "a folder": ("en", "."),
    "behind a link to a folder inside": ("link", "data/beside"),
}


@pytest.mark.parametrize(("name", "target"), LINKS.values(), ids=LINKS)
def test_no_link_in_a_datasets_folder_leads_out(context: Any, tmp_path: Path, name: str, target: str) -> None:
    """The library follows links: the worker looks at all of them, as the server did, just before it reads."""
    (tmp_path / "x.jsonl").write_text('{"text": "secret"}\n')
    folder = tmp_path / "data" / "set"
    (folder / name).parent.mkdir(parents=True)
    if target == "data/beside":
        (tmp_path / target).mkdir()
        (tmp_path / target / "train.jsonl").symlink_to(tmp_path / "x.jsonl")
    (folder / name).symlink_to(tmp_path / target)
    with pytest.raises(PathNotAllowed):
        text_source(context, TextSpec(kind="dataset", path=str(folder)))


def test_links_of_a_datasets_folder_may_stay_inside_the_roots(context: Any, tmp_path: Path) -> None:
    """As in a folder of the hub's cache, whose files all lie elsewhere; and a circle is walked once."""
    folder, blobs = tmp_path / "data" / "set", tmp_path / "data" / "blobs"
    (folder / "en").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "b").write_text('{"text": "words"}\n')
    (folder / "en" / "train.jsonl").symlink_to(blobs / "b")
    (folder / "en" / "again").symlink_to(folder)
    (folder / "gone").symlink_to(folder / "nothing")
    source = text_source(context, TextSpec(kind="dataset", path=str(folder)))
    assert source == TextSource("dataset", folder)


def test_a_pipe_deep_in_a_datasets_folder_keeps_nobody_waiting(context: Any, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "set" / "en"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "train.jsonl")
    with pytest.raises(PathNotUsable):
        text_source(context, TextSpec(kind="dataset", path=str(folder.parent)))


def test_windows_beyond_the_positions_are_refused_before_the_text_is_read(context: Any) -> None:
    checkpoint: Any = SimpleNamespace(config={"text_config": {"max_position_embeddings": 128}})
    with pytest.raises(CalibrationError, match=r"windows of 129 tokens: .* max_position_embeddings = 128"):
        draw_windows(context, checkpoint, TextSpec(), "calibrate", WindowSpec(length=129, count=2))
