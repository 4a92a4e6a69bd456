"""What a request may say about its text is checked where it is made, whatever a worker would find later."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

pytestmark = [pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _calibrate(client: TestClient, model: dict[str, Any], text: dict[str, Any]) -> Any:
    return client.post("/api/v1/calibrations", json={"model_id": model["id"], "text": text})


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder inside the model roots with one of everything."""
    folder = tmp_path / "models" / "texts"
    (folder / "set").mkdir(parents=True)
    (folder / "x.jsonl").write_text('\n{"body": "words"}\n')
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(b'{"text": "words"}\n'))
    (folder / "empty.jsonl").write_text("\n")
    (folder / "x.parquet").write_bytes(b"a worker opens it")
    (folder / "x.zst").write_bytes(b"")
    return folder


def test_texts_of_every_kind_reach_the_worker(client: TestClient, model: dict[str, Any], texts: Path) -> None:
    asked: list[dict[str, Any]] = [
        {"kind": "file", "path": str(texts / "x.jsonl"), "field": "body", "max_documents": 5},
        {"kind": "file", "path": str(texts / "x.jsonl.gz")},
        {"kind": "file", "path": str(texts / "x.parquet"), "field": "content"},
        {"kind": "dataset", "path": str(texts / "set"), "dataset_split": "test"},
        {"kind": "dataset", "path": "allenai/c4", "config": "en", "revision": COMMIT, "max_documents": 2000},
    ]
    for text in asked:
        answer = _calibrate(client, model, text)
        assert answer.status_code == 202, answer.text
        # nothing is added: a text that leaves a field out keeps its hash when a field comes along
        assert answer.json()["params"]["text"] == text
    assert _calibrate(client, model, {}).json()["params"]["text"] == {"kind": "stdlib", "path": None}


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ({"kind": "file"}, "path", "needs one"),
        ({"kind": "file", "path": "TEXTS/none.txt"}, "path", "is no file"),
        ({"kind": "file", "path": "TEXTS/set"}, "path", "is no file"),
        ({"kind": "file", "path": "TEXTS/x.zst"}, "path", ".zst cannot be read"),
        ({"kind": "file", "path": "TEXTS/x.jsonl"}, "field", "the field 'text'"),
        ({"kind": "file", "path": "TEXTS/empty.jsonl"}, "path", "holds no document"),
        ({"kind": "file", "path": "TEXTS/x.parquet", "revision": COMMIT}, "revision", "kind dataset"),
        ({"kind": "dataset", "path": "TEXTS/none"}, "path", "no folder of a dataset"),
        ({"kind": "dataset", "path": "TEXTS/x.parquet"}, "path", "no folder of a dataset"),
        ({"kind": "dataset", "path": "TEXTS/set", "revision": COMMIT}, "path", "no hub id"),
        ({"kind": "dataset", "path": "allenai/c4"}, "revision", "40 hex digits"),
        ({"kind": "dataset", "path": "allenai/c4", "revision": "main"}, "revision", "pattern"),
        ({"kind": "dataset", "path": "TEXTS/set", "dataset_split": "train[:1%]"}, "dataset_split", "names no split"),
        ({"kind": "stdlib", "max_documents": 3}, "max_documents", "only for a text of kind file or dataset"),
        ({"kind": "dataset", "path": "TEXTS/set", "trust_remote_code": True}, "trust_remote_code", "unknown field"),
    ],
)
def test_refused(
    client: TestClient, model: dict[str, Any], texts: Path, text: dict[str, Any], field: str, words: str
) -> None:
    if "path" in text:
        text = text | {"path": text["path"].replace("TEXTS", str(texts))}
    answer = _calibrate(client, model, text)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == f"text.{field}"
    assert words in answer.json()["errors"][0]["message"]


def test_datasets_outside_the_roots(client: TestClient, model: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    answer = _calibrate(client, model, {"kind": "dataset", "path": str(tmp_path / "set")})
    assert answer.status_code == 403
    assert answer.json()["type"] == "urn:bitbudget:problem:path-not-allowed"


def test_a_datasets_own_test_split_may_be_judged_as_a_whole(client: TestClient, study_config: dict[str, Any]) -> None:
    text = {"kind": "dataset", "path": "Salesforce/wikitext", "config": "wikitext-2-raw-v1", "revision": COMMIT}
    study_config["text"] = text
    study_config["evaluation"]["datasets"] = [text | {"dataset_split": "test", "split": "whole"}]
    answer = client.post("/api/v1/studies", json={"config": study_config})
    assert answer.status_code == 202, answer.text
    jobs = {job["step"]: job["params"] for job in client.get(answer.headers["location"]).json()["jobs"]}
    judged = jobs["evaluate:original:wikitext-wikitext-2-raw-v1"]
    assert judged["text"] == text | {"dataset_split": "test"}
    assert judged["split"] == "whole"
    study_config["evaluation"]["datasets"] = [text | {"split": "whole"}]
    answer = client.post("/api/v1/studies", json={"config": study_config})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "evaluation.datasets.0.split"
