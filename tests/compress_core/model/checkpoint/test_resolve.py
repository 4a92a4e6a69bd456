"""Where a model comes from: local path first, then the hub at a pinned revision."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress_core.checkpoint.resolve import resolve_model
from compress_core.errors import CheckpointError


def test_a_local_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/name") == Path("org/name")
    assert resolve_model(str(tmp_path), "0" * 40) == tmp_path


@pytest.mark.parametrize("source", ["/no/such/directory", "../org/name", "name", "a/b/c", "org/na me"])
def test_neither_path_nor_hub_id(source: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve_model(source, "0" * 40)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "0" * 39, "G" * 40])
def test_a_hub_id_needs_a_pinned_revision(revision: str | None) -> None:
    with pytest.raises(CheckpointError, match="40 hex digits"):
        resolve_model("some-org/no-such-model", revision)


def test_a_failed_download_is_a_named_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="cannot fetch some-org/no-such-model"):
        resolve_model("some-org/no-such-model", "0" * 40)
