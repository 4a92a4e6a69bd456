"""What the guide says about compressed models, word for word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from compress_core.checkpoint import open_checkpoint

_SECTION = re.compile(r"^## Using a compressed model\n(.*?)^## ", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def section(repo: Path) -> str:
    found = _SECTION.search((repo / "docs" / "guide.md").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


@pytest.mark.slow
def test_its_python_runs(section: str, qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "model").symlink_to(qwen2)  # a smaller one than the demo's
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    compressing, loading = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    exec(compressing, names)
    exec(loading, names)
    prompt = names["prompt"]
    assert names["model"].generate(**prompt, max_new_tokens=20).shape[1] > prompt["input_ids"].shape[1]
    open_checkpoint("dense")  # an ordinary checkpoint
    assert type(AutoModelForCausalLM.from_pretrained("dense")) is type(names["dense"])
