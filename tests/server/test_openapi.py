"""The OpenAPI document is a contract: what changes in it changes in the committed snapshot, on purpose.

``SNAPSHOT=write pytest tests/server/test_openapi.py`` writes the snapshot anew.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from results_db.settings import Settings
from server.app import create_app

SNAPSHOT = Path(__file__).with_name("openapi.json")


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document as /openapi.json serves it; nothing of one machine is in it."""
    settings = Settings(var_dir=tmp_path_factory.mktemp("var"))
    made = create_app(settings, run_loop=False, page=False).openapi()
    return json.loads(json.dumps(made))


def as_text(document: dict[str, Any]) -> str:
    """Pretty and stable: keys in order, without the version of the checkout."""
    shown = document | {"info": {k: v for k, v in document["info"].items() if k != "version"}}
    return json.dumps(shown, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def test_the_document_is_the_snapshot(document: dict[str, Any]) -> None:
    made = as_text(document)
    if os.environ.get("SNAPSHOT") == "write":
        SNAPSHOT.write_text(made, encoding="utf-8")
    kept = SNAPSHOT.read_text(encoding="utf-8")
    if made != kept:
        changed = "\n".join(
            list(difflib.unified_diff(kept.splitlines(), made.splitlines(), "openapi.json", "now", lineterm="", n=2))[
                :60
            ]
        )
        pytest.fail(f"the API changed: if you mean it, run with SNAPSHOT=write and commit the file\n{changed}")
