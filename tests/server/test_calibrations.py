"""What a request for a calibration may say, and what is refused before a job is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from server.studies.plan import plan_study
from server.studies.schemas import StudyConfig

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def arrays(model: dict[str, Any]) -> dict[str, np.ndarray]:
    """Second moments of every input of the model."""
    widths = {(m["layer_idx"], m["projection"]): m["in_features"] for m in model["matrices"]}
    return {f"{layer}.{name}": np.eye(width) for (layer, name), width in widths.items()}


def ask(client: TestClient, model: dict[str, Any], **fields: Any) -> Any:
    return client.post("/api/v1/calibrations", json={"model_id": model["id"]} | fields)


@sqlite_only
def test_dtype_and_what_is_kept(client: TestClient, model: dict[str, Any]) -> None:
    job = ask(client, model, dtype="bfloat16", keep="tokens").json()
    assert (job["params"]["dtype"], job["params"]["keep"], job["params"]["npz"]) == ("bfloat16", "tokens", None)
    job = ask(client, model).json()
    assert (job["params"]["dtype"], job["params"]["keep"]) == ("float32", "hessians")
    assert ask(client, model, dtype="float16").status_code == 422
    assert ask(client, model, keep="nothing").status_code == 422


def test_a_study_passes_them_on(checkpoint: Path) -> None:
    config = StudyConfig.model_validate(
        {
            "name": "x",
            "model": {"source": str(checkpoint)},
            "grid": {"b_q": [2], "rank": [0]},
            "calibration": {"samples": 3, "keep": "tokens", "dtype": "bfloat16"},
        }
    )
    step = next(step for step in plan_study(config, "mod_1", fetch=False) if step.name == "calibrate")
    assert (step.params["keep"], step.params["dtype"], step.params["windows"]["count"]) == ("tokens", "bfloat16", 3)


@sqlite_only
def test_an_archive_that_fits(
    client: TestClient, model: dict[str, Any], arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "models" / "h.npz"
    np.savez(path, **arrays)
    answer = ask(client, model, npz=str(path))
    assert answer.status_code == 202, answer.json()
    assert answer.json()["params"]["npz"] == str(path)
    del arrays["1.down"]
    np.savez(path, **arrays)
    problem = ask(client, model, npz=str(path)).json()
    assert problem["type"] == "urn:bitbudget:problem:invalid-calibration"
    assert "no statistics for 1 inputs of the model: 1.down" in problem["detail"]
    assert problem["errors"][0]["field"] == "npz"
    assert ask(client, model, npz=str(path), npz_fill="identity").status_code == 202


@sqlite_only
def test_archives_that_are_refused(
    client: TestClient, model: dict[str, Any], arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "models" / "h.npz"
    missing = ask(client, model, npz=str(path)).json()
    assert missing["type"] == "urn:bitbudget:problem:archive-not-found"
    path.write_bytes(b"no zip")
    assert "no readable .npz" in ask(client, model, npz=str(path)).json()["detail"]
    np.savez(path, **arrays | {"1.q": np.eye(5)})
    assert "has shape [5, 5], but 1.qkv of this model is 32 wide" in ask(client, model, npz=str(path)).json()["detail"]
    np.savez(path, **{"1.q": np.array([{}], dtype=object)})
    assert "Python objects" in ask(client, model, npz=str(path)).json()["detail"]
    outside = ask(client, model, npz="/etc/passwd").json()
    assert outside["type"] == "urn:bitbudget:problem:path-not-allowed"


@sqlite_only
@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"npz": "h.npz", "keep": "tokens"}, "keep must be hessians"),
        ({"npz": "h.npz", "windows": {"count": 3}}, "leave windows out"),
        ({"npz": "h.npz", "text": {"kind": "file", "path": "x.txt"}}, "leave text out"),
        ({"npz": "h.npz", "dtype": "bfloat16"}, "leave dtype out"),
        ({"npz_fill": "identity"}, "npz_fill goes with npz"),
    ],
)
def test_fields_that_do_not_go_together(
    client: TestClient, model: dict[str, Any], fields: dict[str, Any], match: str
) -> None:
    answer = ask(client, model, **fields)
    assert answer.status_code == 422
    assert match in answer.json()["detail"]
