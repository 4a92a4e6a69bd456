"""Paths, hub ids and archives: what a request may make the server read."""

from __future__ import annotations

import json
import os
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import load_file, save_file

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
pytestmark = sqlite_only


def register(client: TestClient, source: str) -> tuple[int, str, str]:
    answer = client.post("/api/v1/models", json={"source": source})
    body = answer.json()
    return answer.status_code, str(body.get("type", "")).rsplit(":", 1)[-1], str(body.get("detail", ""))


@pytest.mark.parametrize(
    "source",
    [
        *("/", "/etc", "/etc/passwd", "/proc/self/root/etc", "/proc/self/environ", "/proc/self/cwd", "/dev/stdin"),
        *("..", "../..", "../../../../../../etc", "models/../../../etc", "~", "~root", "~/.ssh"),
        *(
            "file:///etc",
            "file:/etc",
            "file://localhost/etc",
            "http://evil.example/x",
            "s3://bucket/model",
            "ftp://h/p",
        ),
        *("//evil.example/share", "\\\\evil.example\\share", "C:\\Windows", "x" * 4096, "%2e%2e/%2e%2e"),
        *("$(touch owned)", "`touch owned`", "; touch owned", "-rf", "*"),
    ],
)
def test_nothing_outside_the_roots_is_read(client: TestClient, source: str) -> None:
    assert register(client, source)[:2] == (403, "path-not-allowed")
    assert client.get("/api/v1/models").json()["items"] == []


def test_a_path_that_no_system_has(client: TestClient) -> None:
    assert register(client, "a\x00b")[:2] == (422, "path-not-usable")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_inside_a_folder_leads_nowhere(
    client: TestClient, checkpoint: Path, study_config: dict[str, Any], tmp_path: Path, name: str
) -> None:
    """Also where what it leads to would be a fine checkpoint."""
    outside = tmp_path / f"outside-{name}"
    source = checkpoint / name
    if source.exists():
        source.rename(outside)
    else:
        outside.write_text('{"secret": 1}')
    source.symlink_to(outside)
    status, slug, detail = register(client, str(checkpoint))
    assert (status, slug) == (403, "path-not-allowed")
    assert "secret" not in detail
    # a study and its plan open folders too
    for path in ("/api/v1/plans", "/api/v1/studies"):
        asked = client.post(path, json={"config": study_config})
        assert (asked.status_code, asked.json()["type"]) == (403, "urn:bitbudget:problem:path-not-allowed")


def test_what_lies_outside_looks_the_same_whether_it_is_there_or_not(client: TestClient, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    answers = []
    for path in (there, tmp_path / "gone"):
        status, slug, detail = register(client, str(path))
        answers.append((status, slug, detail.replace(str(path), "PATH")))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "source", ["a/b/c", "../b", "a/..", "a..b/c", "a/b--c", "a/b.", "ä/b", "a/" + "b" * 120, "a/b\n"]
)
def test_what_is_no_hub_id_is_never_fetched(client: TestClient, source: str) -> None:
    answer = client.post("/api/v1/models", json={"source": source, "revision": "0" * 40})
    assert answer.status_code == 403
    assert client.get("/api/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    "revision", ["main", "", "0" * 39, "0" * 41, "A" * 40, "0" * 40 + "\n", "refs/pr/1", "../" + "0" * 37]
)
def test_a_hub_model_is_pinned(client: TestClient, revision: str) -> None:
    answer = client.post("/api/v1/models", json={"source": "org/name", "revision": revision})
    assert answer.status_code == 422
    assert client.get("/api/v1/jobs").json()["items"] == []


# --- pickles and code ----------------------------------------------------------------------------------------------


def _poison(folder: Path, name: str) -> Path:
    """A pickle that tells when it is opened."""
    opened = folder.parent / "opened"

    class Tell:
        def __reduce__(self) -> Any:
            return (Path.touch, (opened,))

    import pickle

    (folder / name).write_bytes(pickle.dumps(Tell()))
    return opened


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "pytorch_model-00001-of-00002.bin"]
)
def test_pickles_alone_are_refused_unopened(client: TestClient, checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    opened = _poison(checkpoint, name)
    status, slug, detail = register(client, str(checkpoint))
    assert (status, slug) == (422, "invalid-checkpoint")
    assert "safetensors" in detail
    assert not opened.exists()


def test_pickles_beside_safetensors_are_not_looked_at(client: TestClient, checkpoint: Path) -> None:
    opened = _poison(checkpoint, "pytorch_model.bin")
    assert register(client, str(checkpoint))[0] == 201
    assert not opened.exists()


def test_a_pickle_that_calls_itself_safetensors_is_refused(client: TestClient, checkpoint: Path) -> None:
    opened = _poison(checkpoint, "model.safetensors")
    assert register(client, str(checkpoint))[:2] == (422, "invalid-checkpoint")
    assert not opened.exists()


@pytest.mark.parametrize(
    "size", [b"\xff" * 8, b"\x00" * 8, (2**62).to_bytes(8, "little"), (10**9).to_bytes(8, "little")]
)
def test_headers_that_lie_about_their_size(client: TestClient, checkpoint: Path, size: bytes) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(size + file.read_bytes()[8:])
    assert register(client, str(checkpoint))[:2] == (422, "invalid-checkpoint")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_a_pipe_keeps_nobody_waiting(client: TestClient, checkpoint: Path, name: str) -> None:
    """Whoever opens a pipe waits until somebody writes into it."""
    (checkpoint / name).unlink(missing_ok=True)
    os.mkfifo(checkpoint / name)
    assert register(client, str(checkpoint))[:2] == (422, "path-not-usable")


def test_an_archive_that_is_a_pipe_keeps_nobody_waiting(
    client: TestClient, model: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "models" / "pipe.npz"
    os.mkfifo(path)
    answer = client.post("/api/v1/calibrations", json={"model_id": model["id"], "npz": str(path)})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "header",
    [
        '{"a":' * 100_000,
        '{"a":{"dtype":"F32","shape":[' + ",".join(["9" * 4000] * 2000) + '],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[' + ",".join(["2"] * 500_000) + '],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,' + "9" * 5000 + "]}}",
        '{"' + "a" * 1_000_000 + '":{"dtype":"F32","shape":[1],"data_offsets":[0,5]}}',
        '{"a":{"dtype":"' + "F" * 1_000_000 + '","shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":[],"shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":{"x":1},"data_offsets":[0,4]}}',
    ],
    ids=["depth", "product", "dimensions", "digits", "name", "dtype", "list", "object"],
)
def test_a_header_that_is_a_bomb(client: TestClient, checkpoint: Path, header: str) -> None:
    """A product of 2,000 numbers of 4,000 digits would hold the whole server for minutes."""
    (checkpoint / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 4)
    status, slug, detail = register(client, str(checkpoint))
    assert (status, slug) == (422, "invalid-checkpoint")
    assert len(detail) < 2_000, "what the file says is not sent on"


@pytest.mark.parametrize(
    "text", ['{"a":' * 100_000, "[" * 100_000, '{"hidden_size": ' + "9" * 5000 + "}", "\x00", "[]"]
)
def test_a_config_that_is_a_bomb(client: TestClient, checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text)
    status, slug, detail = register(client, str(checkpoint))
    assert (status, slug) == (422, "invalid-checkpoint")
    assert len(detail) < 2_000


def test_a_config_without_end_is_not_read(client: TestClient, checkpoint: Path) -> None:
    """A sparse file says that it is a terabyte, and takes no room."""
    with (checkpoint / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    assert register(client, str(checkpoint))[:2] == (422, "invalid-checkpoint")


def test_code_in_a_checkpoint_is_not_run(client: TestClient, checkpoint: Path, tmp_path: Path) -> None:
    """``auto_map`` names Python files of the checkpoint; transformers would import them if it were allowed to."""
    ran = tmp_path / "ran"
    (checkpoint / "modeling_evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass EvilForCausalLM: pass\n")
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert register(client, str(checkpoint))[0] == 201
    assert not ran.exists()


def test_an_archive_with_objects_is_refused_unopened(client: TestClient, model: dict[str, Any], tmp_path: Path) -> None:
    """``.npz`` may hold pickles."""
    opened = tmp_path / "opened"

    class Tell:
        def __reduce__(self) -> Any:
            return (Path.touch, (opened,))

    path = tmp_path / "models" / "evil.npz"
    np.savez(path, h=np.array([Tell()], dtype=object))
    answer = client.post("/api/v1/calibrations", json={"model_id": model["id"], "npz": str(path)})
    assert answer.status_code == 422
    assert "pickle" in answer.json()["detail"]
    assert not opened.exists()


def test_an_archive_whose_header_is_a_bomb(client: TestClient, model: dict[str, Any], tmp_path: Path) -> None:
    """A few kB that unpack into a header of megabytes; they could be gigabytes."""
    path = tmp_path / "models" / "bomb.npz"
    n_header = 50_000_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("h.npy", b"\x93NUMPY\x02\x00" + n_header.to_bytes(4, "little") + b" " * n_header)
    tracemalloc.start()
    answer = client.post("/api/v1/calibrations", json={"model_id": model["id"], "npz": str(path)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert answer.status_code == 422
    assert "header" in answer.json()["detail"]
    assert peak < n_header / 2


def test_texts_and_archives_lie_inside_the_roots_too(client: TestClient, model: dict[str, Any], tmp_path: Path) -> None:
    outside = tmp_path / "secret.txt"
    outside.write_text("hunter2")
    link = tmp_path / "models" / "text.txt"
    link.symlink_to(outside)
    for path in (str(outside), str(link), "/etc/passwd", "../../etc/passwd", "/proc/self/environ"):
        for body in (
            {"text": {"kind": "file", "path": path}},
            {"text": {"kind": "dataset", "path": path}},
            {"npz": path},
        ):
            answer = client.post("/api/v1/calibrations", json={"model_id": model["id"]} | body)
            assert answer.status_code == 403, (path, body)
            assert "hunter2" not in answer.text


@pytest.mark.parametrize("name", ["train.jsonl", "en/0/train.jsonl"])
def test_a_link_inside_a_datasets_folder_leads_nowhere(
    client: TestClient, model: dict[str, Any], study_config: dict[str, Any], tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "x.jsonl"
    outside.write_text('{"text": "hunter2"}\n')
    link = tmp_path / "models" / "set" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    text = {"kind": "dataset", "path": str(tmp_path / "models" / "set")}
    bodies: dict[str, dict[str, Any]] = {
        "calibrations": {"model_id": model["id"], "text": text},
        "evaluations": {"model_id": model["id"], "text": text},
        "sensitivities": {"model_id": model["id"], "text": text, "anchors": [{"b_q": 2}]},
        "validations": {"model_id": model["id"], "text": text, "name": "x", "allocation_ids": ["none"]},
        "studies": {"config": study_config | {"text": text}},
    }
    for path, body in bodies.items():
        answer = client.post(f"/api/v1/{path}", json=body)
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:bitbudget:problem:path-not-allowed"), path
        assert "hunter2" not in answer.text
    assert client.get("/api/v1/jobs").json()["items"] == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_laid_after_a_model_was_registered_leads_nowhere(
    client: TestClient, model: dict[str, Any], checkpoint: Path, tmp_path: Path, name: str
) -> None:
    """A compression with a head reads the model's files in the server again."""
    outside = tmp_path / name
    if (checkpoint / name).exists():
        (checkpoint / name).rename(outside)
    else:
        outside.write_text('{"secret": 1}')
    (checkpoint / name).symlink_to(outside)
    body = {"model_id": model["id"], "allocation_id": "none", "head": {"b_q": 4}}
    answer = client.post("/api/v1/compressions", json=body)
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:bitbudget:problem:path-not-allowed"), answer.text
    assert "secret" not in answer.json()["detail"].replace(str(tmp_path), "")


def test_a_tensor_name_cannot_leave_its_file(client: TestClient, checkpoint: Path) -> None:
    """Names of tensors become nothing but keys."""
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["../../../etc/passwd"] = np.ones(3, np.float32)
    save_file(tensors, str(checkpoint / "model.safetensors"))
    assert register(client, str(checkpoint))[0] == 201
