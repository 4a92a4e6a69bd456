"""A checkpoint that brings Python files along: they are never run, whatever its config says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.errors import CheckpointError
from compress_core.stream.model import StreamedModel
from compress_core.text.tokens import load_tokenizer
from tests.service import write_model

_AUTO_MAP = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModel": "evil.EvilModel",
    "AutoModelForCausalLM": "evil.EvilModel",
    "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
}


@pytest.fixture
def evil(tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint whose configs name a Python file of its own; ``ran`` beside it appears when that is imported."""

    def make(**config: Any) -> Path:
        folder = write_model(tmp_path / "model", layers=1)
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
        for name in ("config.json", "tokenizer_config.json"):
            values = json.loads((folder / name).read_text()) | {"auto_map": _AUTO_MAP}
            (folder / name).write_text(json.dumps(values | (config if name == "config.json" else {})))
        return folder

    return make


@pytest.mark.parametrize("change", [{}, {"model_type": "evil"}, {"architectures": ["EvilModel"]}])
def test_a_models_own_code_is_not_run(evil: Callable[..., Path], tmp_path: Path, change: dict[str, Any]) -> None:
    folder = evil(**change)
    # a family that only its own code knows cannot be built
    is_foreign = change == {"model_type": "evil"}
    with pytest.raises(CheckpointError) if is_foreign else nullcontext():
        StreamedModel(DenseWeights(open_checkpoint(folder)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tokenizer_class", [None, "EvilTokenizer"])
def test_a_tokenizers_own_code_is_not_run(
    evil: Callable[..., Path], tmp_path: Path, tokenizer_class: str | None
) -> None:
    folder = evil()
    if tokenizer_class is not None:
        values = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": tokenizer_class}
        (folder / "tokenizer_config.json").write_text(json.dumps(values))
    # whether its files do without the code is up to the library; that the code stays where it is, is up to us
    with suppress(CheckpointError):
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()
