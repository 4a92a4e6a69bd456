"""Recording: under the token, once a key, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select

from results_db.clock import utc_now
from results_db.errors import LeaseLost
from results_db.migrate import downgrade, upgrade
from results_db.queries.measured import measured_cells
from results_db.queue.lease import Claim, reap_expired
from results_db.recording import (
    find_calibration,
    find_compression,
    find_evaluation,
    move_artefact,
    newest_calibration,
    record_calibration,
    record_compression,
    record_evaluation,
    record_measurement,
    record_sensitivity,
    record_sweep,
    recorded_cells,
    recorded_sensitivities,
)
from results_db.tables import Allocation, Artefact, EvaluationItem, Measurement, Model, SensitivityAnchor, Sweep

HERE = {"numerics_version": 1, "device_kind": "cpu"}
CALIBRATION = HERE | {
    "model_id": "mod_1",
    "n_samples": 1,
    "sample_length": 8,
    "n_tokens": 8,
    "seed": 0,
    "token_hash": "t",
    "text": {"kind": "stdlib"},
    "seconds": 0.1,
}
SIZES = {"out_features": 8, "in_features": 8, "layer_idx": 0, "projection": "q"}
CONFIG = {
    "config": {"b_q": 2},
    "b_q": 2,
    "rank": 0,
    "factor_bits_l": 4,
    "factor_bits_r": 4,
    "codebook": "e8",
    "states": None,
    "seed": 0,
}
ERRORS = {
    "raw_mse": 0.1,
    "normalized_mse": 0.1,
    "calibration_weighted_error": 0.1,
    "nbytes": 16,
    "bits_per_weight": 2.0,
    "seconds": 0.1,
}


@pytest.fixture
def claim(queue: Any) -> Claim:
    """A running job of a model."""
    with queue.database.write() as session:
        session.add(Model(id="mod_1", name="tiny", source="x"))
    return queue.run(queue.submit())  # type: ignore[no-any-return]


@pytest.fixture
def calibration_id(queue: Any, claim: Claim) -> str:
    return str(queue.do(record_calibration, claim, uri="file", nbytes=1, content_hash="c1", **CALIBRATION))


@pytest.fixture
def measurement(queue: Any, claim: Claim, calibration_id: str) -> dict[str, Any]:
    """Columns of one measurement."""
    sweep_id = queue.do(
        record_sweep,
        claim,
        model_id="mod_1",
        calibration_id=calibration_id,
        configs=[{}],
        config_hashes=["h"],
        clamped=[],
        n_cells=1,
    )
    key = {"model_id": "mod_1", "calibration_id": calibration_id, "sweep_id": sweep_id, "config_hash": "h"}
    return HERE | SIZES | CONFIG | ERRORS | key


@pytest.fixture
def sensitivity(calibration_id: str) -> dict[str, Any]:
    """Columns of one sensitivity."""
    return HERE | {
        "model_id": "mod_1",
        "calibration_id": calibration_id,
        "method": "kl_anchor",
        "layer_idx": 0,
        "projection": "q",
        "anchor_config_hash": "h",
        "anchor_config": {},
        "anchor_error": 0.1,
        "kl": 0.01,
        "kl_se": float("inf"),
        "sensitivity": 0.1,
        "n_sequences": 1,
        "n_tokens": 8,
        "token_hash": "t",
        "text": {},
        "seconds": 0.1,
    }


def count(queue: Any, table: Any) -> int:
    with queue.database.read() as session:
        return int(session.scalars(select(func.count()).select_from(table)).one())


@pytest.fixture
def two_sizes(queue: Any, claim: Claim, measurement: dict[str, Any]) -> dict[str, Any]:
    """Measurements of two sizes of trellis and of e8; answers what they share."""
    for codebook, states in (("trellis", 1024), ("trellis", 4096), ("e8", None)):
        config = {"b_q": 2, "codebook": codebook, "states": states or 1024}
        values = {"codebook": codebook, "states": states, "config": config, "config_hash": f"{codebook}-{states}"}
        assert queue.do(record_measurement, claim, **(measurement | values))
    return {"model_id": "mod_1", "calibration_id": measurement["calibration_id"], "numerics_version": 1}


def test_measurements_by_codebook_and_states(queue: Any, two_sizes: dict[str, Any]) -> None:
    with queue.database.read() as session:
        assert len(measured_cells(session, **two_sizes)) == 3
        assert len(measured_cells(session, **two_sizes, codebook="trellis")) == 2
        (row,) = measured_cells(session, **two_sizes, codebook="trellis", states=4096)
        assert (row.states, row.config["states"]) == (4096, 4096)
        assert measured_cells(session, **two_sizes, codebook="e8", states=1024) == []


def test_an_upgrade_finds_the_states_of_old_measurements_in_their_configs(
    queue: Any, two_sizes: dict[str, Any]
) -> None:
    downgrade(queue.database, "0001")
    upgrade(queue.database)
    with queue.database.read() as session:
        found = session.execute(select(Measurement.codebook, Measurement.states).order_by(Measurement.id)).all()
    assert [tuple(row) for row in found] == [("trellis", 1024), ("trellis", 4096), ("e8", None)]


def test_a_measurement_is_recorded_once(queue: Any, claim: Claim, measurement: dict[str, Any]) -> None:
    assert queue.do(record_measurement, claim, **measurement) is True
    assert queue.do(record_measurement, claim, **(measurement | {"raw_mse": 9.0})) is False
    assert queue.do(record_measurement, claim, **(measurement | {"device_kind": "cuda"})) is True
    with queue.database.read() as session:
        rows = session.scalars(select(Measurement).order_by(Measurement.id)).all()
        assert [row.raw_mse for row in rows] == [0.1, 0.1]
        assert (rows[0].attempt_id, rows[0].expert_idx) == (claim.attempt_id, -1)
        assert utc_now() >= rows[0].created_at
        cells = recorded_cells(
            session,
            model_id="mod_1",
            calibration_id=measurement["calibration_id"],
            config_hashes=["h", "other"],
            numerics_version=1,
            device_kind="cpu",
        )
    assert cells == {(0, "q", -1, "h")}


def test_one_sweep_a_job(queue: Any, claim: Claim, measurement: dict[str, Any]) -> None:
    again = queue.do(
        record_sweep,
        claim,
        model_id="mod_1",
        calibration_id=measurement["calibration_id"],
        configs=[{}],
        config_hashes=["h"],
        clamped=[],
        n_cells=1,
    )
    assert again == measurement["sweep_id"]
    assert count(queue, Sweep) == 1


def test_a_sensitivity_is_recorded_once(queue: Any, claim: Claim, sensitivity: dict[str, Any]) -> None:
    assert queue.do(record_sensitivity, claim, **sensitivity) is True
    assert queue.do(record_sensitivity, claim, **sensitivity) is False
    with queue.database.read() as session:
        known = recorded_sensitivities(
            session,
            model_id="mod_1",
            calibration_id=sensitivity["calibration_id"],
            method="kl_anchor",
            token_hash="t",
            **HERE,
        )
    assert known == {(0, "q", -1, "h")}


def test_equal_calibrations_are_one(queue: Any, claim: Claim, calibration_id: str) -> None:
    again = queue.do(record_calibration, claim, uri="other", nbytes=2, content_hash="c1", **CALIBRATION)
    other = queue.do(record_calibration, claim, uri="other", nbytes=2, content_hash="c2", **CALIBRATION)
    assert again == calibration_id != other
    assert count(queue, Artefact) == 2
    with queue.database.read() as session:
        assert find_calibration(session, "c1").id == calibration_id
        assert newest_calibration(session, "mod_1").id in (calibration_id, other)
        assert newest_calibration(session, "mod_2") is None
        artefact_id = find_calibration(session, "c1").artefact_id
    queue.do(move_artefact, claim, artefact_id, uri="new", nbytes=3)
    with queue.database.read() as session:
        assert session.get_one(Artefact, artefact_id).uri == "new"


def test_compressions_and_evaluations(queue: Any, claim: Claim, calibration_id: str) -> None:
    with queue.database.write() as session:
        session.add(
            Allocation(
                id="al_1",
                model_id="mod_1",
                name="u",
                kind="uniform",
                scope="decoder",
                matrix_bytes=1,
                fixed_bytes=1,
                total_bytes=1,
                bits_per_weight=2.0,
                n_distinct_configs=1,
                content_hash="a",
                overrides_yaml="",
                seconds=0,
            )
        )
    key = HERE | {"model_id": "mod_1", "calibration_id": calibration_id, "content_hash": "a"}
    values = key | {"allocation_id": "al_1", "expected_bytes": 2, "actual_bytes": 2, "seconds": 0.1}
    compression_id = queue.do(record_compression, claim, uri="p", nbytes=2, id="cmp_1", **values)
    assert compression_id == "cmp_1"
    assert queue.do(record_compression, claim, uri="q", nbytes=2, id="cmp_2", **values) == "cmp_1"
    evaluation = HERE | {
        "model_id": "mod_1",
        "compression_id": "cmp_1",
        "content_hash": "e",
        "task": "perplexity",
        "dataset": "stdlib",
        "split": "report",
        "metric": "ppl",
        "value": 2.0,
        "ci_low": 1.0,
        "ci_high": 3.0,
        "nll": 0.7,
        "bits_per_byte": 1.0,
        "n_items": 2,
        "n_tokens": 14,
        "token_hash": "t",
        "text": {},
        "seconds": 0.1,
    }
    evaluation_id = queue.do(record_evaluation, claim, items=[(4.9, 7), (5.1, 7)], **evaluation)
    assert queue.do(record_evaluation, claim, items=[(0.0, 7)], **evaluation) == evaluation_id
    with queue.database.read() as session:
        assert find_compression(session, **key).id == "cmp_1"
        assert find_evaluation(session, "e").id == evaluation_id
        items = session.scalars(select(EvaluationItem).order_by(EvaluationItem.item_idx)).all()
    assert [(item.item_idx, item.nll, item.n_tokens) for item in items] == [(0, 4.9, 7), (1, 5.1, 7)]


def test_a_stale_worker_records_nothing(
    queue: Any, claim: Claim, measurement: dict[str, Any], sensitivity: dict[str, Any]
) -> None:
    queue.expire(claim)
    queue.do(reap_expired)
    before = [count(queue, table) for table in (Artefact, Sweep, Measurement, SensitivityAnchor)]
    writes: list[Callable[[], Any]] = [
        lambda: queue.do(record_measurement, claim, **measurement),
        lambda: queue.do(record_sensitivity, claim, **sensitivity),
        lambda: queue.do(record_calibration, claim, uri="x", nbytes=1, content_hash="late", **CALIBRATION),
    ]
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    assert [count(queue, table) for table in (Artefact, Sweep, Measurement, SensitivityAnchor)] == before
