"""A worker looks again at where a model's files lie: links may have been laid since the server looked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import save_file

from compress_core.checkpoint import open_checkpoint
from results_db.errors import PathNotAllowed, PathNotUsable
from results_db.settings import Settings
from results_db.tables import Model
from tests.server.conftest import write_checkpoint
from worker.inputs import open_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "models" / "tiny")


@pytest.fixture
def open_it(tmp_path: Path, checkpoint: Path) -> Callable[..., Any]:
    """Open the model that is registered at a path, as a job does."""
    fingerprint = open_checkpoint(checkpoint).fingerprint
    settings = Settings(var_dir=tmp_path / "var", model_roots=(tmp_path / "models",))

    def open_(path: Path) -> Any:
        row = Model(id="mod_1", name="tiny", local_path=str(path), fingerprint=fingerprint)
        recorder = SimpleNamespace(read=lambda _: row)
        return open_model(SimpleNamespace(recorder=recorder, settings=settings), "mod_1")  # type: ignore[arg-type]

    return open_


def test_a_model_inside_the_roots(open_it: Callable[..., Any], checkpoint: Path) -> None:
    assert open_it(checkpoint)[1].n_layers == 3


def test_a_folder_that_became_a_link_outside(open_it: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    checkpoint.rename(outside)
    checkpoint.symlink_to(outside)
    with pytest.raises(PathNotAllowed):
        open_it(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_became_a_link_outside(
    open_it: Callable[..., Any], checkpoint: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / name
    if (checkpoint / name).exists():
        (checkpoint / name).rename(outside)
    else:
        outside.write_text("{}")
    (checkpoint / name).symlink_to(outside)
    with pytest.raises(PathNotAllowed):
        open_it(checkpoint)


def test_links_inside_the_roots_and_into_the_hubs_cache_are_followed(
    open_it: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache is made of links: a snapshot's files lie among its blobs."""
    blob = tmp_path / "models" / "blob"
    (checkpoint / "model.safetensors").rename(blob)
    (checkpoint / "model.safetensors").symlink_to(blob)
    assert open_it(checkpoint)[1].n_layers == 3
    cache = tmp_path / "hub"
    (cache / "blobs").mkdir(parents=True)
    blob.rename(cache / "blobs" / "b")
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").symlink_to(cache / "blobs" / "b")
    checkpoint.rename(cache / "snapshot")
    with pytest.raises(PathNotAllowed):
        open_it(cache / "snapshot")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert open_it(cache / "snapshot")[1].n_layers == 3


@pytest.mark.parametrize("path", ["/proc/self/root/etc", "/proc/self/cwd", "/dev/fd", "/etc", "/", "~root"])
def test_paths_that_lead_out(open_it: Callable[..., Any], path: str) -> None:
    with pytest.raises((PathNotAllowed, PathNotUsable)):
        open_it(Path(path))


def test_an_index_cannot_name_files_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    import numpy as np

    from compress_core.errors import CheckpointError

    save_file({"x": np.ones(2, np.float32)}, str(tmp_path / "models" / "x.safetensors"))
    (checkpoint / "model.safetensors").unlink()
    for shard in ("../x.safetensors", str(tmp_path / "models" / "x.safetensors"), "a/../../x.safetensors", "..", ""):
        index = {"weight_map": {"model.norm.weight": shard}}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError):
            open_checkpoint(checkpoint)
