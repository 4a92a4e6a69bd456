"""Recording estimates, fidelities and validations: under the token, once a key, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select

from results_db.errors import LeaseLost
from results_db.queries.measured import measured_sensitivities, sensitivity_estimates
from results_db.queue.lease import Claim, reap_expired
from results_db.recording import (
    record_calibration,
    record_estimates,
    record_layer_fidelity,
    record_sensitivity,
    record_validation,
    recorded_fidelities,
)
from results_db.tables import (
    LayerFidelityRow,
    Model,
    SensitivityEstimate,
    Validation,
    ValidationItem,
    ValidationWindow,
)

HERE = {"numerics_version": 1, "device_kind": "cpu"}
ESTIMATE = {
    "projection": "q",
    "log_se": 0.1,
    "low": 0.1,
    "high": 10.0,
    "raw": 1.0,
    "raw_log_se": 0.2,
    "own_weight": 0.5,
    "n_anchors": 2,
    "n_floored": 0,
}


@pytest.fixture
def claim(queue: Any) -> Claim:
    with queue.database.write() as session:
        session.add(Model(id="mod_1", name="tiny", source="x"))
    return queue.run(queue.submit())  # type: ignore[no-any-return]


@pytest.fixture
def key(queue: Any, claim: Claim) -> dict[str, Any]:
    """Model, calibration, numerics and device of everything here."""
    calibration_id = queue.do(
        record_calibration,
        claim,
        uri="file",
        nbytes=1,
        content_hash="c",
        model_id="mod_1",
        n_samples=1,
        sample_length=8,
        n_tokens=8,
        seed=0,
        token_hash="t",
        text={},
        seconds=0.1,
        **HERE,
    )
    return HERE | {"model_id": "mod_1", "calibration_id": calibration_id}


def estimates(*values: float, **columns: Any) -> list[dict[str, Any]]:
    return [ESTIMATE | {"layer_idx": layer, "value": value} | columns for layer, value in enumerate(values)]


def known(queue: Any, key: dict[str, Any], **where: Any) -> list[float]:
    where = {name: key[name] for name in ("model_id", "calibration_id", "numerics_version")} | where
    return [row.value for row in queue.do(sensitivity_estimates, **where)]


def test_estimates_replace_those_of_the_same_tokens(queue: Any, claim: Claim, key: dict[str, Any]) -> None:
    shared = key | {"method": "kl_anchor", "metric": "calibration_weighted_error"}
    queue.do(record_estimates, claim, **shared, token_hash="a", estimates=estimates(1.0, 2.0))
    queue.do(record_estimates, claim, **shared, token_hash="a", estimates=estimates(3.0, 4.0))
    assert known(queue, key) == [3.0, 4.0]
    queue.do(record_estimates, claim, **shared, token_hash="b", estimates=estimates(5.0))
    assert known(queue, key) == [5.0], "of the text concluded from last, and of no other"
    queue.do(record_estimates, claim, **shared, token_hash="a", estimates=estimates(6.0, 7.0))
    assert known(queue, key) == [6.0, 7.0]
    with queue.database.read() as session:
        assert session.scalar(select(func.count()).select_from(SensitivityEstimate)) == 3


def test_estimates_of_methods_classes_and_incumbents_stand_side_by_side(
    queue: Any, claim: Claim, key: dict[str, Any]
) -> None:
    shared = key | {"metric": "calibration_weighted_error", "token_hash": "a"}
    both = [*estimates(1.0), *estimates(2.0, applies_to="low_rank")]
    queue.do(record_estimates, claim, **shared, method="kl_anchor", estimates=both)
    for incumbent, value in (("x", 3.0), ("y", 4.0)):
        queue.do(
            record_estimates, claim, **shared, method="reanchored", incumbent_hash=incumbent,
            estimates=estimates(value),
        )  # fmt: skip
    assert known(queue, key) == [1.0, 2.0]
    assert known(queue, key, method="reanchored", incumbent_hash="x") == [3.0]
    assert known(queue, key, method="reanchored") == [4.0], "the newest, where none is named"
    assert known(queue, key, method="higgs") == []


def test_anchors_are_those_of_the_text_that_was_concluded_from(queue: Any, claim: Claim, key: dict[str, Any]) -> None:
    anchor = key | {
        "method": "kl_anchor", "projection": "q", "anchor_config_hash": "h", "anchor_config": {}, "anchor_error": 0.1,
        "kl": 0.01, "kl_se": 0.001, "sensitivity": 0.1, "n_sequences": 2, "n_tokens": 8, "text": {}, "seconds": 0.1,
        "kl_per_sequence": [0.009, 0.011],
    }  # fmt: skip
    # the later text covers more matrices
    for token_hash, layers in (("a", 1), ("b", 2)):
        for layer in range(layers):
            assert queue.do(record_sensitivity, claim, **anchor, layer_idx=layer, token_hash=token_hash)
    where = {name: key[name] for name in ("model_id", "calibration_id", "numerics_version")}
    rows = queue.do(measured_sensitivities, **where)
    assert {row.token_hash for row in rows} == {"b"}
    assert rows[0].kl_per_sequence == [0.009, 0.011]
    shared = key | {"method": "kl_anchor", "metric": "calibration_weighted_error", "token_hash": "a"}
    queue.do(record_estimates, claim, **shared, estimates=estimates(1.0))
    assert {row.token_hash for row in queue.do(measured_sensitivities, **where)} == {"a"}
    assert list(queue.do(measured_sensitivities, **where, method="higgs")) == []


def fidelity(key: dict[str, Any], layer: int) -> dict[str, Any]:
    return key | {
        "layer_idx": layer, "config_hash": "h", "config": {"b_q": 2}, "cosine": 0.9, "cosine_se": None,
        "relative_error": 0.1, "relative_error_se": 0.01, "n_sequences": 4, "token_hash": "t", "text": {},
        "seconds": 0.1,
    }  # fmt: skip


def test_a_layer_s_fidelity_is_kept_once(queue: Any, claim: Claim, key: dict[str, Any]) -> None:
    assert queue.do(record_layer_fidelity, claim, **fidelity(key, 3))
    assert not queue.do(record_layer_fidelity, claim, **fidelity(key, 3))
    assert queue.do(recorded_fidelities, **key, config_hash="h", token_hash="t") == {3}
    assert queue.do(recorded_fidelities, **key, config_hash="h", token_hash="u") == set()


def validation(key: dict[str, Any], n_items: int = 2) -> dict[str, Any]:
    item = {"allocation_id": None, "name": "original", "kind": "original", "matrix_bytes": 9, "predicted_kl": None}
    measured = {"kl": 0.0, "kl_se": 0.0, "nll": 2.0, "ppl": 7.4}
    return key | {
        "study_id": None, "name": "choice", "dataset": "stdlib", "split": "select", "token_hash": "t", "n_windows": 3,
        "n_tokens": 21, "text": {}, "n_allocations": n_items - 1, "details": {}, "seconds": 0.1,
        "items": [item | measured | {"windows": [(0.0, 14.0, 7), (0.1, 15.0, 7)]} for _ in range(n_items)],
    }  # fmt: skip


def test_a_validation_is_one_a_job_with_every_window(queue: Any, claim: Claim, key: dict[str, Any]) -> None:
    id_ = queue.do(record_validation, claim, **validation(key))
    assert queue.do(record_validation, claim, **validation(key, n_items=5)) == id_, "a retried commit adds nothing"
    with queue.database.read() as session:
        row = session.get_one(Validation, id_)
        assert (row.job_id, row.spearman, row.calibrated) == (claim.job_id, None, None)
        items = session.scalars(select(ValidationItem).order_by(ValidationItem.position)).all()
        assert [item.position for item in items] == [0, 1]
        windows = session.scalars(select(ValidationWindow).order_by(ValidationWindow.id)).all()
    assert [(w.validation_item_id, w.item_idx, w.kl, w.nll, w.n_tokens) for w in windows[2:]] == [
        (items[1].id, 0, 0.0, 14.0, 7),
        (items[1].id, 1, 0.1, 15.0, 7),
    ]


def test_a_stale_worker_concludes_nothing(queue: Any, claim: Claim, key: dict[str, Any]) -> None:
    queue.expire(claim)
    queue.do(reap_expired)
    shared = key | {"method": "kl_anchor", "metric": "calibration_weighted_error", "token_hash": "a"}
    with pytest.raises(LeaseLost):
        queue.do(record_estimates, claim, **shared, estimates=estimates(1.0))
    with pytest.raises(LeaseLost):
        queue.do(record_layer_fidelity, claim, **fidelity(key, 0))
    with pytest.raises(LeaseLost):
        queue.do(record_validation, claim, **validation(key))
    with queue.database.read() as session:
        for table in (SensitivityEstimate, LayerFidelityRow, Validation):
            assert session.scalar(select(func.count()).select_from(table)) == 0
