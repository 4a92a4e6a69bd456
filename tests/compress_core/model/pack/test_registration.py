"""Importing compress_core.pack costs nothing and makes transformers know packed models, whoever is imported first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

KNOWN = "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING; assert 'bitbudget' in AUTO_QUANTIZER_MAPPING"


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        f"from transformers.quantizers import auto; import compress_core.pack; {KNOWN}",
        f"import compress_core.pack; import transformers; transformers.Qwen2ForCausalLM; {KNOWN}",
        "from importlib.util import find_spec; import compress_core.pack; "
        f"find_spec('transformers.quantizers.auto'); {KNOWN}",
        "import compress_core.pack, importlib; import transformers.quantizers.auto as auto; "
        "assert 'bitbudget' in auto.AUTO_QUANTIZER_MAPPING; "
        "assert type(auto.__spec__.loader).__module__ == '_frozen_importlib_external'",
    ],
    ids=["transformers first", "through a model class", "after a mere look", "leaves the registry as is"],
)
def test_the_quantizer_is_registered(repo: Path, code: str) -> None:
    _run(repo, code)


def test_the_import_needs_neither_torch_nor_transformers(repo: Path) -> None:
    code = "import sys, compress_core.pack, compress_core.pack.header, compress_core.pack.layout\n"
    _run(repo, code + "assert not {'torch', 'transformers'} & sys.modules.keys()")


def _run(repo: Path, code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
