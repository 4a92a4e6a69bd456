"""Sensitivity jobs: every method and anchor once, and what is concluded from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from compress_core import CompressionConfig, MatrixKey
from compress_core.allocate import KLAnchor, class_sensitivities
from results_db.states import JobKind, JobState
from results_db.tables import LayerFidelityRow, SensitivityAnchor, SensitivityEstimate

#: matrices and layers of the tiny model
N_MATRICES, N_LAYERS = 14, 2
ANCHORS = [
    {"b_q": 2, "rank": 0, "codebook": "scalar"},
    {"b_q": 2, "rank": 4, "codebook": "scalar", "factor_bits": 8, "iterations": 1},
]
METHODS = ["kl_anchor", "fisher_diagonal", "fisher_output", "higgs"]


@pytest.fixture
def asking(model_id: str, calibration_id: str, text_path: Path) -> dict[str, Any]:
    return {
        "model_id": model_id,
        "calibration_id": calibration_id,
        "anchors": ANCHORS,
        "text": {"kind": "file", "path": str(text_path)},
        "windows": {"length": 16, "count": 5},
    }


def run(service: Any, params: dict[str, Any]) -> dict[str, Any]:
    job = service.finish(service.submit(JobKind.SENSITIVITY, params))
    assert job.state == JobState.SUCCEEDED, job.error
    return dict(job.result)


def anchors(service: Any) -> list[SensitivityAnchor]:
    with service.database.read() as session:
        return list(session.scalars(select(SensitivityAnchor).order_by(SensitivityAnchor.id)))


def test_all_methods_and_what_is_concluded(service: Any, asking: dict[str, Any]) -> None:
    params = asking | {"methods": METHODS, "fidelity": ANCHORS[0]}
    n_rows = 4 * 2 * N_MATRICES
    n_layer_rows = 2 * N_LAYERS + N_LAYERS  # in company at each anchor; fidelity
    result = run(service, params)
    assert result == {
        "calibration_id": asking["calibration_id"],
        "recorded": n_rows + n_layer_rows,
        "reused": 0,
        # all cells of each method, and both classes of those whose anchors are configs
        "n_estimates": (1 + 3 * 3) * N_MATRICES,
        "incumbent_allocation_id": None,
    }
    everything = [row for row in anchors(service) if row.n_sequences == 5]
    rows = [row for row in everything if row.method != "company"]
    assert len(rows) == n_rows
    for row in rows:
        each = row.kl_per_sequence
        assert each is not None
        assert row.kl == pytest.approx(sum(each) / 5)
        assert row.sensitivity == pytest.approx(row.kl / row.anchor_error)
        assert row.kl >= 0
    noisy = [row for row in rows if row.method == "higgs"]
    assert {row.anchor_config_hash: row.anchor_error for row in noisy} == {
        "noise-0.05": pytest.approx(0.0025),
        "noise-0.1": pytest.approx(0.01),
    }
    with service.database.read() as session:
        estimates = session.scalars(select(SensitivityEstimate).filter_by(token_hash=rows[0].token_hash)).all()
        layers = session.scalars(select(LayerFidelityRow).filter_by(token_hash=rows[0].token_hash)).all()
    assert {(e.method, e.metric, e.applies_to) for e in estimates} == {
        *((m, "calibration_weighted_error", cells) for m in METHODS[:3] for cells in ("all", "rank0", "low_rank")),
        ("higgs", "normalized_mse", "all"),
    }
    assert len(estimates) == result["n_estimates"]
    for estimate in estimates:
        assert 0 < estimate.low < estimate.value < estimate.high
        assert estimate.n_anchors == (2 if estimate.applies_to == "all" else 1)
    assert sorted(layer.layer_idx for layer in layers) == [0, 1]
    assert all(0 < layer.cosine < 1 and layer.cosine_se > 0 and layer.relative_error_se > 0 for layer in layers)
    # a layer in company: what restoring it saves, over what its matrices cost alone; the estimates have it in them
    company = {(row.layer_idx, row.anchor_config_hash): row for row in everything if row.method == "company"}
    assert len(company) == len(everything) - n_rows == 2 * N_LAYERS
    for (layer, anchor), row in company.items():
        of_layer = [r for r in rows if (r.method, r.layer_idx) == ("kl_anchor", layer)]
        assert row.projection == "layer"
        assert row.anchor_error == pytest.approx(sum(r.kl for r in of_layer if r.anchor_config_hash == anchor))
        assert 0.2 < row.sensitivity < 5
    for layer in range(N_LAYERS):
        multiplier = math.prod(row.sensitivity for (of, _), row in company.items() if of == layer) ** 0.5
        of_layer_alone = class_sensitivities(
            KLAnchor(
                MatrixKey(r.layer_idx, r.projection), r.anchor_error, r.kl, r.kl_se, tuple(r.kl_per_sequence or ())
            )
            for r in rows
            if r.method == "kl_anchor"
        )["all"]
        for e in estimates:
            if (e.method, e.applies_to, e.layer_idx) == ("kl_anchor", "all", layer):
                alone = of_layer_alone[MatrixKey(layer, e.projection)]
                assert e.value == pytest.approx(alone.value * multiplier, rel=1e-6)
                assert e.raw == pytest.approx(alone.raw)
    # asked again: nothing is measured, and the conclusions stand
    assert run(service, params) == result | {"recorded": 0, "reused": n_rows + n_layer_rows}
    with service.database.read() as session:
        again = session.scalars(select(SensitivityEstimate).filter_by(token_hash=rows[0].token_hash)).all()
    assert sorted((e.method, e.applies_to, e.layer_idx, e.projection, e.value, e.log_se) for e in again) == sorted(
        (e.method, e.applies_to, e.layer_idx, e.projection, e.value, e.log_se) for e in estimates
    )


def test_around_an_allocation(
    service: Any, asking: dict[str, Any], model_id: str, calibration_id: str, tiny_model: Path
) -> None:
    def config_of(key: MatrixKey) -> CompressionConfig:
        return CompressionConfig(b_q=2 + key.layer_idx, codebook="scalar")

    allocation_id = service.allocate(model_id, calibration_id, tiny_model, config_of)
    params = asking | {
        "calibration_id": None,
        "methods": ["reanchored"],
        "incumbent_allocation_id": allocation_id,
        "windows": {"length": 16, "count": 7},
    }
    result = run(service, params)
    assert result == {
        "calibration_id": calibration_id,
        "recorded": N_MATRICES,
        "reused": 0,
        "n_estimates": N_MATRICES,
        "incumbent_allocation_id": allocation_id,
    }
    rows = [row for row in anchors(service) if row.n_sequences == 7]
    assert {row.method for row in rows} == {"reanchored"}
    assert {row.anchor_config["allocation_id"] for row in rows} == {allocation_id}
    # a layer of 2 bits errs more than one of 3
    errors = {row.layer_idx: row.anchor_error for row in rows if row.projection == "up"}
    assert errors[0] > 2 * errors[1]
    with service.database.read() as session:
        estimates = session.scalars(select(SensitivityEstimate).filter_by(method="reanchored")).all()
    assert {estimate.incumbent_hash for estimate in estimates} == {rows[0].anchor_config_hash}
    assert all(estimate.value > 0 for estimate in estimates)
    assert run(service, params) == result | {"recorded": 0, "reused": N_MATRICES}


def test_an_incumbent_must_be_the_model_s(service: Any, asking: dict[str, Any]) -> None:
    params = asking | {"methods": ["reanchored"], "incumbent_allocation_id": "alloc_none"}
    job = service.finish(service.submit(JobKind.SENSITIVITY, params))
    assert job.state == JobState.FAILED
    assert "alloc_none" in str(job.error)
