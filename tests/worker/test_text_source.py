"""From a job's text to what is read: paths are looked up again where the job runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress_core.errors import CalibrationError
from compress_core.text import TextSource
from results_db.errors import PathNotAllowed
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


def test_windows_beyond_the_positions_are_refused_before_the_text_is_read(context: Any) -> None:
    checkpoint: Any = SimpleNamespace(config={"text_config": {"max_position_embeddings": 128}})
    with pytest.raises(CalibrationError, match=r"windows of 129 tokens: .* max_position_embeddings = 128"):
        draw_windows(context, checkpoint, TextSpec(), "calibrate", WindowSpec(length=129, count=2))
