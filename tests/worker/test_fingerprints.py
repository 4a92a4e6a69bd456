"""A fingerprint is read once, and again when a file changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from compress_core.checkpoint import checkpoint as module
from compress_core.checkpoint import open_checkpoint
from worker.fingerprints import remember_fingerprint


def test_files_are_read_once(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    first = remember_fingerprint(open_checkpoint(tiny_model), cache)
    assert first == open_checkpoint(tiny_model).fingerprint

    def refuse(*_: object) -> str:
        raise AssertionError("the weights were read again")

    monkeypatch.setattr(module, "fingerprint", refuse)
    again = open_checkpoint(tiny_model)
    assert remember_fingerprint(again, cache) == first
    assert again.fingerprint == first


def test_a_changed_file_is_read_again(tiny_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    cache = tmp_path / "cache"
    first = remember_fingerprint(open_checkpoint(copy), cache)
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert remember_fingerprint(open_checkpoint(copy), cache) != first
