"""What takes long to read is read before the transaction that writes: SQLite has one writer, and all others wait.

On PostgreSQL a transaction that has only read keeps nobody waiting.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient

from results_db.params import OverridesYaml
from tests.server.conftest import HIDDEN

pytestmark = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)

TEXT = {"kind": "file", "path": "FOLDER/x.jsonl"}
HEAD, CONFIGS = {"b_q": 4}, [{"b_q": 2, "rank": 0}]
#: the path, what is asked for, and what reads it
ASKED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a calibration's text": ("calibrations", {"text": TEXT}, "server.kit.checks.iter_documents"),
    "a calibration's archive": ("calibrations", {"npz": "FOLDER/h.npz"}, "server.calibrations.service.match_arrays"),
    "an evaluation's text": ("evaluations", {"text": TEXT}, "server.kit.checks.iter_documents"),
    "sensitivities' text": ("sensitivities", {"text": TEXT, "anchors": CONFIGS}, "server.kit.checks.iter_documents"),
    "sensitivities' anchors": ("sensitivities", {"anchors": CONFIGS}, "server.sensitivities.service.check_configs"),
    "a validation's text": (
        "validations",
        {"text": TEXT, "name": "x", "allocation_ids": ["none"]},
        "server.kit.checks.iter_documents",
    ),
    "a sweep's configs": ("sweeps", {"configs": CONFIGS}, "server.sweeps.service.check_configs"),
    "an allocation's overrides": (
        "allocations",
        {"name": "x", "kind": "overrides", "overrides_yaml": "OVERRIDES"},
        "server.allocations.solve.overrides_from_yaml",
    ),
    "a compression's overrides": (
        "compressions",
        {"overrides_yaml": "OVERRIDES"},
        "server.allocations.solve.overrides_from_yaml",
    ),
    "a compression's head": (
        "compressions",
        {"allocation_id": "none", "head": HEAD},
        "server.compressions.service.open_checkpoint",
    ),
}


def _writable(path: str) -> bool:
    """Whether the lock of the one that writes is free."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return False
        return True


@pytest.mark.parametrize(("path", "asked", "reader"), ASKED.values(), ids=ASKED)
def test_nobody_waits_for_what_a_request_reads(
    app: FastAPI,
    client: TestClient,
    model: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    path: str,
    asked: dict[str, Any],
    reader: str,
) -> None:
    folder = tmp_path / "models"
    (folder / "x.jsonl").write_text('{"text": "words"}\n')
    np.savez(folder / "h.npz", h=np.eye(HIDDEN, dtype=np.float32))
    module, _, name = reader.rpartition(".")
    real = getattr(import_module(module), name)
    writable: list[bool] = []

    def reading(*args: Any, **kwargs: Any) -> Any:
        writable.append(_writable(str(app.state.database.url.database)))
        return real(*args, **kwargs)

    monkeypatch.setattr(import_module(module), name, reading)
    answer = client.post(f"/api/v1/{path}", json={"model_id": model["id"]} | _filled(asked, folder, model))
    assert writable, answer.text
    assert all(writable)


def _filled(asked: dict[str, Any], folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    matrices = {f"{m['layer_idx']}.{m['projection']}": {"b_q": 2} for m in model["matrices"]}
    overrides = yaml.safe_dump({"version": 1, "matrices": matrices})

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: fill(part) for name, part in value.items()}
        return value.replace("FOLDER", str(folder)).replace("OVERRIDES", overrides) if isinstance(value, str) else value

    return dict(fill(asked))


@pytest.mark.parametrize("path", ["allocations", "compressions"])
def test_overrides_have_a_largest_size(client: TestClient, model: dict[str, Any], path: str) -> None:
    """A megabyte takes up to 15 s to read."""
    (most,) = (part.max_length for part in OverridesYaml.__metadata__[0].metadata if hasattr(part, "max_length"))
    body = {"model_id": model["id"], "overrides_yaml": "#" * (most + 1)}
    if path == "allocations":
        body |= {"name": "x", "kind": "overrides"}
    answer = client.post(f"/api/v1/{path}", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "overrides_yaml")
    assert f"at most {most} characters" in answer.text
