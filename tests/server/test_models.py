"""Registering checkpoints, good and bad."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import load_file, save_file

from compress_core.checkpoint import open_checkpoint
from compress_core.pack.layout import fixed_bytes

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


def test_a_checkpoint_is_registered_once(client: TestClient, checkpoint: Path) -> None:
    first = client.post("/api/v1/models", json={"source": str(checkpoint)})
    assert first.status_code == 201
    model = first.json()
    assert first.headers["location"] == f"/api/v1/models/{model['id']}"
    opened = open_checkpoint(checkpoint)
    assert model["fingerprint"] == opened.fingerprint
    assert model["fixed_bytes"] == fixed_bytes(opened)
    assert model["n_layers"] == 3
    assert len(model["matrices"]) == 21
    assert model["matrices"][1] | {"nbytes": 0} == {
        "layer_idx": 0,
        "projection": "k",
        "expert_idx": -1,
        "out_features": 16,
        "in_features": 32,
        "nbytes": 0,
    }
    moved = checkpoint.with_name("moved")
    shutil.copytree(checkpoint, moved)
    again = client.post("/api/v1/models", json={"source": str(moved)})
    assert (again.status_code, again.json()["id"]) == (200, model["id"])
    assert again.json()["local_path"] == str(moved)
    assert [m["id"] for m in client.get("/api/v1/models").json()["items"]] == [model["id"]]
    assert client.get(f"/api/v1/models/{model['id']}").json()["name"] == "tiny"


def test_a_hub_id_becomes_a_fetch_job(client: TestClient) -> None:
    answer = client.post("/api/v1/models", json={"source": "org/name", "revision": "0" * 40})
    assert answer.status_code == 202
    job = client.get(answer.headers["location"]).json()
    assert (job["kind"], job["params"]) == ("fetch", {"model_id": answer.json()["id"]})
    again = client.post("/api/v1/models", json={"source": "org/name", "revision": "0" * 40})
    assert (again.status_code, again.json()["id"]) == (200, answer.json()["id"])
    # nothing can be asked of it before it is here
    early = client.post("/api/v1/calibrations", json={"model_id": answer.json()["id"]})
    assert early.json()["type"] == "urn:bitbudget:problem:model-not-fetched"


@sqlite_only
def test_fused_and_expert_matrices(client: TestClient, checkpoint: Path) -> None:
    """Each is a row of its own, with its own bytes."""
    tensors = load_file(checkpoint / "model.safetensors")
    attention = [tensors.pop(f"model.layers.0.self_attn.{p}_proj.weight") for p in ("q", "k", "v")]
    tensors["model.layers.0.self_attn.qkv_proj.weight"] = np.concatenate(attention)
    for projection in ("gate", "up", "down"):
        weight = tensors.pop(f"model.layers.1.mlp.{projection}_proj.weight")
        for expert in range(2):
            tensors[f"model.layers.1.mlp.experts.{expert}.{projection}_proj.weight"] = weight + expert
    tensors["model.layers.1.mlp.gate.weight"] = np.ones((2, attention[0].shape[1]), attention[0].dtype)
    save_file(tensors, checkpoint / "model.safetensors")
    answer = client.post("/api/v1/models", json={"source": str(checkpoint)})
    assert answer.status_code == 201, answer.text
    model = answer.json()
    found = {(m["layer_idx"], m["projection"], m["expert_idx"]): m for m in model["matrices"]}
    assert len(found) == len(model["matrices"]) == 7 + (4 + 2 * 3) + 7
    assert [found[0, p, -1]["out_features"] for p in ("q", "k", "v")] == [len(weight) for weight in attention]
    assert found[1, "up", 1]["expert_idx"] == 1
    opened = open_checkpoint(checkpoint)
    assert sum(m["nbytes"] for m in model["matrices"]) == opened.matrix_bytes
    assert opened.matrix_bytes + opened.other_bytes == sum(weight.nbytes for weight in tensors.values())


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _garble_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _lying_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@sqlite_only
@pytest.mark.parametrize("damage", [_truncate, _garble_header, _pickle, _no_config, _lying_config, _empty])
def test_bad_checkpoints(client: TestClient, checkpoint: Path, damage: object) -> None:
    damage(checkpoint)  # type: ignore[operator]
    answer = client.post("/api/v1/models", json={"source": str(checkpoint)})
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["type"] == "urn:bitbudget:problem:invalid-checkpoint"
    assert len(problem["detail"]) > 20
    assert client.get("/api/v1/models").json()["items"] == []


@sqlite_only
def test_weights_that_are_not_finite(client: TestClient, checkpoint: Path) -> None:
    """Named when the model is registered: the fingerprint reads every byte anyway."""
    tensors = load_file(checkpoint / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][0, 0] = np.nan
    save_file(tensors, checkpoint / "model.safetensors")
    answer = client.post("/api/v1/models", json={"source": str(checkpoint)})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:bitbudget:problem:non-finite-values")
    assert f"tensor {name} in {checkpoint}" in answer.json()["detail"]
    assert "holds 1 NaN or infinite values" in answer.json()["detail"]
    assert client.get("/api/v1/models").json()["items"] == []


@sqlite_only
def test_missing_paths(client: TestClient, tmp_path: Path) -> None:
    answer = client.post("/api/v1/models", json={"source": str(tmp_path / "models" / "none")})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:bitbudget:problem:model-not-found")
    assert answer.json()["errors"][0]["field"] == "source"
    bare = client.post("/api/v1/models", json={"source": "org/name"})
    assert "pinned revision" in bare.json()["detail"]


@sqlite_only
def test_paths_outside_the_roots(client: TestClient, checkpoint: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(checkpoint, outside)
    link = tmp_path / "models" / "link"
    link.symlink_to(outside)
    for source in (str(outside), str(link), f"{checkpoint}/../../outside", "/etc", "~/models"):
        answer = client.post("/api/v1/models", json={"source": source})
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:bitbudget:problem:path-not-allowed"), source


@sqlite_only
@pytest.mark.parametrize("body", [{}, {"source": ""}, {"source": "a/b", "revision": "main"}, {"source": "x", "a": 1}])
def test_bad_requests(client: TestClient, body: dict[str, str]) -> None:
    assert client.post("/api/v1/models", json=body).status_code == 422


@sqlite_only
@pytest.mark.parametrize(
    ("source", "status", "slug"),
    [
        ("ROOT/a\0b", 422, "path-not-usable"),
        ("~nobodyofthisname/model", 422, "path-not-usable"),
        ("ROOT/" + "a" * 300, 422, "path-not-usable"),
        ("ROOT/loop", 422, "path-not-usable"),
        # too long for a hub id, and no folder that is allowed
        ("a/" + "b" * 400, 403, "path-not-allowed"),
    ],
)
def test_paths_that_cannot_be_looked_up(
    client: TestClient, tmp_path: Path, source: str, status: int, slug: str
) -> None:
    (tmp_path / "models" / "loop").symlink_to("loop")
    path = source.replace("ROOT", str(tmp_path / "models"))
    answer = client.post("/api/v1/models", json={"source": path})
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:bitbudget:problem:{slug}"), answer.text
