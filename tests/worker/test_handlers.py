"""Each kind of job: what it records, what it reuses, and how it names a cause when it fails. On both databases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlalchemy import func, select

from compress_core import CompressionConfig, MatrixKey
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import read_finite
from compress_core.pack.layout import FILE_NAME
from compress_core.pack.reader import PackedModel
from results_db.ids import new_id
from results_db.states import JobKind, JobState
from results_db.tables import (
    Artefact,
    Calibration,
    Compression,
    Evaluation,
    EvaluationItem,
    Measurement,
    SensitivityAnchor,
    Sweep,
)

N_MATRICES, N_LAYERS = 14, 2
UNIFORM = {"b_q": 3, "rank": 4, "codebook": "scalar", "seed": 77}


def run(service: Any, kind: JobKind, params: dict[str, Any]) -> dict[str, Any]:
    """The result of a job that must succeed."""
    job = service.finish(service.submit(kind, params))
    assert job.state == JobState.SUCCEEDED, job.error
    assert job.progress["done"] == job.progress["total"] > 0
    return dict(job.result)


def fail(service: Any, kind: JobKind, params: dict[str, Any]) -> dict[str, Any]:
    """The error of a job that must fail at its first attempt."""
    job_id = service.submit(kind, params)
    job = service.finish(job_id)
    assert job.state == JobState.FAILED, job.result
    assert len(service.attempts(job_id)) == 1
    assert job.error["traceback"]
    assert job.error["retryable"] is False
    return dict(job.error)


@pytest.fixture(scope="module")
def allocation_id(service: Any, model_id: str, calibration_id: str, tiny_model: Path) -> str:
    """A uniform allocation."""
    config = CompressionConfig.from_dict(UNIFORM)
    return str(service.allocate(model_id, calibration_id, tiny_model, lambda _: config))


@pytest.fixture
def broken_model(tmp_path: Path, tiny_model: Path) -> Callable[[Callable[[dict[str, torch.Tensor]], None]], Path]:
    """A copy of the tiny model whose tensors a test changes."""

    def make(change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        path = Path(shutil.copytree(tiny_model, tmp_path / "broken"))
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return path

    return make


# --- calibrate -----------------------------------------------------------------------------------------------------


def test_calibrate_twice_reuses_the_file(service: Any, model_id: str, calibration_id: str, text_path: Path) -> None:
    params = {
        "model_id": model_id,
        "text": {"kind": "file", "path": str(text_path)},
        "windows": {"length": 32, "count": 16},
    }
    assert run(service, JobKind.CALIBRATE, params) == {"calibration_id": calibration_id, "reused": True}
    other = run(service, JobKind.CALIBRATE, params | {"windows": {"length": 32, "count": 16, "seed": 1}})
    assert other["calibration_id"] != calibration_id
    assert other["reused"] is False


def test_a_lost_calibration_file_is_written_again(
    service: Any, model_id: str, calibration_id: str, text_path: Path
) -> None:
    with service.database.read() as session:
        row = session.get_one(Calibration, calibration_id)
        before = session.get_one(Artefact, row.artefact_id)
    content = {file.name: file.read_bytes() for file in Path(before.uri).iterdir()}
    shutil.rmtree(before.uri)
    params = {"model_id": model_id, "calibration_id": calibration_id, "configs": [UNIFORM | {"seed": 500}]}
    assert fail(service, JobKind.SWEEP, params)["code"] == "missing-input"
    assert service.calibrate(model_id, text_path) == calibration_id
    with service.database.read() as session:
        after = session.get_one(Artefact, row.artefact_id)
    assert {file.name: file.read_bytes() for file in Path(after.uri).iterdir()} == content


def test_a_calibration_that_keeps_its_tokens_alone(
    service: Any, model_id: str, calibration_id: str, text_path: Path
) -> None:
    """H is computed while a sweep runs: the numbers are those of the stored calibration."""
    params = {
        "model_id": model_id,
        "text": {"kind": "file", "path": str(text_path)},
        "windows": {"length": 32, "count": 16},
        "keep": "tokens",
    }
    made = run(service, JobKind.CALIBRATE, params)
    assert made["reused"] is False
    assert made["calibration_id"] != calibration_id
    assert run(service, JobKind.CALIBRATE, params) == made | {"reused": True}
    with service.database.read() as session:
        row = session.get_one(Calibration, made["calibration_id"])
        artefact = session.get_one(Artefact, row.artefact_id)
    assert row.keeps == "tokens"
    assert {file.name for file in Path(artefact.uri).iterdir()} == {"calibration.json", "tokens.safetensors"}
    sweep = {"model_id": model_id, "configs": [UNIFORM | {"seed": 503}], "matrices": {"projections": ["o", "down"]}}
    errors = []
    for id in (calibration_id, made["calibration_id"]):
        result = run(service, JobKind.SWEEP, sweep | {"calibration_id": id})
        with service.database.read() as session:
            rows = session.scalars(select(Measurement).where(Measurement.sweep_id == result["sweep_id"])).all()
        errors.append({(r.layer_idx, r.projection): r.calibration_weighted_error for r in rows})
    assert len(errors[0]) == 4
    assert errors[0] == errors[1]


def test_a_bfloat16_calibration_is_another_one(
    service: Any, model_id: str, calibration_id: str, text_path: Path
) -> None:
    params = {
        "model_id": model_id,
        "text": {"kind": "file", "path": str(text_path)},
        "windows": {"length": 32, "count": 16},
        "dtype": "bfloat16",
    }
    made = run(service, JobKind.CALIBRATE, params)
    assert made["reused"] is False
    assert made["calibration_id"] != calibration_id


# --- sweep ---------------------------------------------------------------------------------------------------------


def test_a_sweep_clamps_ranks_and_says_so(service: Any, model_id: str, calibration_id: str) -> None:
    configs = [UNIFORM | {"seed": 501, "rank": rank} for rank in (24, 30, 1000)]
    params = {
        "model_id": model_id,
        "calibration_id": calibration_id,
        "configs": configs,
        "matrices": {"layers": [1], "projections": ["k", "down"]},
    }
    result = run(service, JobKind.SWEEP, params)
    # k is 24 × 48: all three ranks become 24; down is 48 × 88: 1000 becomes 48
    assert (result["n_cells"], result["recorded"], result["reused"]) == (4, 4, 0)
    with service.database.read() as session:
        sweep = session.get_one(Sweep, result["sweep_id"])
        rows = session.scalars(select(Measurement).where(Measurement.sweep_id == sweep.id)).all()
    assert {(row.layer_idx, row.projection, row.rank) for row in rows} == {
        (1, "k", 24),
        (1, "down", 24),
        (1, "down", 30),
        (1, "down", 48),
    }
    assert {(c["projection"], c["requested_rank"], c["rank"]) for c in sweep.clamped} == {
        ("k", 30, 24),
        ("k", 1000, 24),
        ("down", 1000, 48),
    }
    assert sweep.config_hashes == sorted({row.config_hash for row in rows})


def test_rank_0_tells_what_ranks_could_take_back(service: Any, model_id: str, calibration_id: str) -> None:
    matrices = {"layers": [1], "projections": ["v"]}
    params = {"model_id": model_id, "calibration_id": calibration_id, "matrices": matrices}
    configs = [UNIFORM | {"seed": 503, "rank": rank} for rank in (5, 0)]
    result = run(service, JobKind.SWEEP, params | {"configs": configs})
    with service.database.read() as session:
        rows = session.scalars(select(Measurement).where(Measurement.sweep_id == result["sweep_id"])).all()
    spectra = {row.rank: row.residual_spectrum for row in rows}
    assert spectra[5] is None
    assert spectra[0]["ranks"] == [1, 2, 4, 8, 10]
    assert 0 < spectra[0]["captured"][0] < spectra[0]["captured"][-1] < 1


@pytest.mark.parametrize("codebook", [{}, {"codebook": "trellis", "states": 256}], ids=["scalar", "trellis"])
def test_a_measurement_is_what_the_core_says(
    service: Any, model_id: str, calibration_id: str, tiny_model: Path, codebook: dict[str, Any]
) -> None:
    from compress_core import compress_matrix
    from compress_core.calibrate.calibration import Calibration as CalibrationFile

    config = CompressionConfig.from_dict(UNIFORM | {"seed": 502} | codebook)
    result = run(
        service,
        JobKind.SWEEP,
        {
            "model_id": model_id,
            "configs": [config.to_dict()],
            "matrices": {"layers": [0], "projections": ["up"]},
            "calibration_id": calibration_id,
        },
    )
    with service.database.read() as session:
        row = session.scalars(select(Measurement).where(Measurement.sweep_id == result["sweep_id"])).one()
        artefact_id = session.get_one(Calibration, calibration_id).artefact_id
        uri = session.get_one(Artefact, artefact_id).uri
    checkpoint = open_checkpoint(tiny_model)
    spec = checkpoint.matrix(MatrixKey(0, "up"))
    weight = read_finite(checkpoint.tensors[spec.tensor_name]).float()
    compressed = compress_matrix(weight, CalibrationFile.open(uri, checkpoint).hessian(spec.key), config)
    difference = (weight - compressed.dequantize()).double()
    assert row.nbytes == compressed.nbytes
    assert row.raw_mse == pytest.approx(float(difference.square().mean()), rel=1e-5)
    assert row.config == config.to_dict()
    assert row.states == codebook.get("states")


# --- sensitivity ---------------------------------------------------------------------------------------------------


def test_sensitivity_records_every_matrix_and_anchor_once(
    service: Any, model_id: str, calibration_id: str, text_path: Path
) -> None:
    params = {
        "model_id": model_id,
        "calibration_id": calibration_id,
        "anchors": [UNIFORM | {"b_q": 2, "rank": 0}],
        "text": {"kind": "file", "path": str(text_path)},
        "windows": {"length": 32, "count": 4},
    }
    n_rows = N_MATRICES + N_LAYERS  # each layer in company too
    assert run(service, JobKind.SENSITIVITY, params) == {
        "calibration_id": calibration_id,
        "recorded": n_rows,
        "reused": 0,
        "n_estimates": N_MATRICES,
        "incumbent_allocation_id": None,
    }
    two = params | {"anchors": [UNIFORM | {"b_q": 2, "rank": 0}, UNIFORM | {"b_q": 4, "rank": 0}]}
    assert run(service, JobKind.SENSITIVITY, two) == {
        "calibration_id": calibration_id,
        "recorded": n_rows,
        "reused": n_rows,
        "n_estimates": N_MATRICES,
        "incumbent_allocation_id": None,
    }
    with service.database.read() as session:
        rows = session.scalars(select(SensitivityAnchor)).all()
    assert len(rows) == 2 * n_rows
    assert all(row.kl > 0 and row.kl_se > 0 and row.n_sequences == 4 and row.n_tokens == 128 for row in rows)
    assert all(row.sensitivity == pytest.approx(row.kl / row.anchor_error) for row in rows)


# --- compress and evaluate -----------------------------------------------------------------------------------------


def test_compress_then_evaluate(
    service: Any, model_id: str, calibration_id: str, allocation_id: str, text_path: Path
) -> None:
    packing = {"model_id": model_id, "allocation_id": allocation_id}
    packed = run(service, JobKind.COMPRESS, packing)
    with service.database.read() as session:
        row = session.get_one(Compression, packed["compression_id"])
        folder = Path(session.get_one(Artefact, row.artefact_id).uri)
    assert row.calibration_id == calibration_id
    assert row.actual_bytes == row.expected_bytes == (folder / FILE_NAME).stat().st_size == packed["actual_bytes"]
    assert folder.name == row.id
    assert PackedModel.open(folder).config(MatrixKey(0, "q")) == CompressionConfig.from_dict(UNIFORM)
    assert run(service, JobKind.COMPRESS, packing) == packed | {"reused": True}

    asking = {
        "model_id": model_id,
        "text": {"kind": "file", "path": str(text_path)},
        "windows": {"length": 32, "count": 8},
    }
    original = run(service, JobKind.EVALUATE, asking)
    compressed = run(service, JobKind.EVALUATE, asking | {"compression_id": row.id})
    assert run(service, JobKind.EVALUATE, asking) == original | {"reused": True}
    assert compressed["evaluation_id"] != original["evaluation_id"]
    with service.database.read() as session:
        rows = [session.get_one(Evaluation, r["evaluation_id"]) for r in (original, compressed)]
        items = session.scalars(
            select(EvaluationItem).where(EvaluationItem.evaluation_id == rows[0].id).order_by(EvaluationItem.item_idx)
        ).all()
    assert rows[0].token_hash == rows[1].token_hash
    assert rows[0].value != rows[1].value
    assert len(items) == rows[0].n_items == 8
    total, tokens = sum(item.nll for item in items), sum(item.n_tokens for item in items)
    assert rows[0].value == pytest.approx(float(np.exp(total / tokens)))
    assert rows[0].ci_low < rows[0].value < rows[0].ci_high

    shutil.rmtree(folder)
    assert fail(service, JobKind.EVALUATE, asking | {"compression_id": row.id, "split": "select"})["code"] == (
        "missing-input"
    )
    assert run(service, JobKind.COMPRESS, packing) == packed | {"reused": False}
    with service.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Compression)) == 1


def test_a_tied_head_is_refused_by_name(service: Any, model_id: str, calibration_id: str, allocation_id: str) -> None:
    params = {"model_id": model_id, "calibration_id": calibration_id, "allocation_id": allocation_id}
    error = fail(service, JobKind.COMPRESS, params | {"head": {"b_q": 4, "codebook": "rtn"}})
    assert error["code"] == "invalid-config"
    assert "tied to the token embedding" in error["message"]


def test_compress_without_allocation(service: Any, model_id: str, calibration_id: str) -> None:
    assert fail(service, JobKind.COMPRESS, {"model_id": model_id})["code"] == "missing-input"


# --- fetch ---------------------------------------------------------------------------------------------------------


def test_fetch_fills_in_the_row(
    service: Any, tiny_model: Path, tmp_path: Path, broken_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from results_db.tables import Model

    def scale(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] *= 2

    commit = "0123456789abcdef" * 2 + "01234567"
    path = service.folder / "hub" / "models--org--fetched" / "snapshots" / commit
    path.parent.mkdir(parents=True)
    shutil.move(broken_model(scale), path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(service.folder / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with service.database.write() as session:
        model = Model(id=new_id("model"), name="fetched", source="org/fetched", revision=commit)
        session.add(model)
    assert run(service, JobKind.FETCH, {"model_id": model.id}) == {"model_id": model.id}
    with service.database.read() as session:
        row = session.get_one(Model, model.id)
    assert (row.local_path, row.n_layers, len(row.matrices)) == (str(path), 2, N_MATRICES)
    with service.database.write() as session:
        again = Model(id=new_id("model"), name="again", source="org/fetched", revision=commit)
        session.add(again)
    error = fail(service, JobKind.FETCH, {"model_id": again.id})
    assert error["code"] == "duplicate-model"
    assert model.id in error["message"]
    # a row that names a folder is none to fetch, whoever wrote it: folders are registered, inside the roots
    with service.database.write() as session:
        folder = Model(id=new_id("model"), name="folder", source=str(tiny_model), revision=commit)
        session.add(folder)
    assert fail(service, JobKind.FETCH, {"model_id": folder.id})["code"] == "invalid-checkpoint"


# --- named causes --------------------------------------------------------------------------------------------------


def test_nan_weights(service: Any, broken_model: Any, text_path: Path, calibration_id: str) -> None:
    """A tensor that went bad after the model was registered; with it, registering is refused."""
    path = broken_model(lambda tensors: tensors["model.norm.weight"].mul_(11))
    model_id = service.add_model(path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    params = {
        "model_id": model_id,
        "text": {"kind": "file", "path": str(text_path)},
        "windows": {"length": 32, "count": 4},
    }
    error = fail(service, JobKind.CALIBRATE, params)
    assert error["code"] == "non-finite-values"
    assert "model.layers.1.mlp.down_proj.weight" in error["message"]


def test_truncated_weights(service: Any, broken_model: Any, text_path: Path, calibration_id: str) -> None:
    path = broken_model(lambda tensors: tensors["model.norm.weight"].mul_(3))
    model_id = service.add_model(path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    params = {"model_id": model_id, "text": {"kind": "file", "path": str(text_path)}}
    error = fail(service, JobKind.CALIBRATE, params)
    assert error["code"] == "invalid-checkpoint"
    assert "model.safetensors" in error["message"]


def test_changed_weights(service: Any, broken_model: Any, text_path: Path, calibration_id: str) -> None:
    path = broken_model(lambda tensors: tensors["model.norm.weight"].mul_(13))
    model_id = service.add_model(path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    params = {"model_id": model_id, "text": {"kind": "file", "path": str(text_path)}}
    assert fail(service, JobKind.CALIBRATE, params)["code"] == "model-changed"


def test_missing_calibration(service: Any, broken_model: Any, calibration_id: str) -> None:
    model_id = service.add_model(broken_model(lambda tensors: tensors["model.norm.weight"].mul_(7)))
    error = fail(service, JobKind.SWEEP, {"model_id": model_id, "configs": [UNIFORM]})
    assert error["code"] == "missing-input"
    assert "submit a calibrate job" in error["message"]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"configs": [{"b_q": 9}]}, "invalid-config", "b_q"),
        ({"configs": [{"b_q": 3, "rank": -1}]}, "invalid-config", "rank"),
        ({"matrices": {"projections": ["nope"]}}, "invalid-config", "nope"),
        ({"model_id": "model_none"}, "database-refused", "model_none"),
    ],
)
def test_parameters_that_cannot_work(
    service: Any, model_id: str, calibration_id: str, change: dict[str, Any], code: str, words: str
) -> None:
    params = {"model_id": model_id, "calibration_id": calibration_id, "configs": [UNIFORM]} | change
    error = fail(service, JobKind.SWEEP, params)
    assert error["code"] == code
    assert words in error["message"]
    json.dumps(error)


def test_a_text_outside_the_roots(service: Any, model_id: str, calibration_id: str, repo: Path) -> None:
    text = {"kind": "file", "path": str(repo / "pyproject.toml")}
    params = {"model_id": model_id, "text": text, "windows": {"count": 2, "length": 32}}
    error = fail(service, JobKind.CALIBRATE, params)
    assert "pyproject.toml" in error["message"]
