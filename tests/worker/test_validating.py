"""Validate jobs: what they record, and whom they recommend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from compress_core import CompressionConfig
from compress_core.analyze.choice import Candidate, choose
from compress_core.checkpoint import open_checkpoint
from compress_core.errors import ConfigError
from results_db.errors import NotFound
from results_db.params import ValidateParams
from results_db.states import JobKind, JobState
from results_db.tables import Allocation, AllocationItem, Calibration
from tests.worker.validations import RTN, WINDOWS, Stored, recorded, store, undisturbed
from worker.errors import MissingInput
from worker.handlers.validate import Given, calibration_of, get_allocations

__all__ = ["store"]  # a fixture


def finished(service: Any, params: dict[str, Any]) -> dict[str, Any]:
    job = service.finish(service.submit(JobKind.VALIDATE, params))
    assert job.state == JobState.SUCCEEDED, job.error
    assert job.progress["done"] == job.progress["total"] == 1000
    return dict(job.result)


def test_what_a_validation_records(
    service: Any, model_id: str, calibration_id: str, tiny_model: Path, text_path: Path, store: Callable[..., Stored]
) -> None:
    rng = np.random.default_rng(0)
    scalar = CompressionConfig(b_q=3, codebook="scalar")
    given = [
        store(lambda _: RTN[3], name="uniform", kind="winner", predicted_kl=0.4, budget_bytes=10**6),
        store(
            lambda key: scalar if key.projection in "qkvo" else RTN[3], name="optimal", kind="optimal", predicted_kl=0.3
        ),
    ]
    for number in range(6):
        picks = dict(zip(given[0].items, rng.choice([2, 3, 4], size=14), strict=True))
        given.append(
            store(
                lambda key, picks=picks: RTN[int(picks[key])],  # type: ignore[misc]
                name=f"random-{number}",
                kind="random",
                predicted_kl=0.3 + 0.1 * number,
                seed=number,
            )
        )
    params = {
        "model_id": model_id,
        "name": "choice",
        "allocation_ids": [g.id for g in given] + [given[0].id],
        "text": {"kind": "file", "path": str(text_path)},
        "windows": WINDOWS,
        "reanchor": True,
    }
    result = finished(service, params)
    row, items, windows = recorded(service, result["validation_id"])
    expected = undisturbed(service, calibration_id, tiny_model, text_path, given)
    checkpoint = open_checkpoint(tiny_model)
    assert [item.allocation_id for item in items] == [None, *(g.id for g in given)]
    assert [item.position for item in items] == list(range(9))
    assert windows[0] == [(0.0, nll, 23) for nll in expected.original.nll]
    for number in range(8):
        own = zip(expected.kl_AN[number], expected.losses[number].nll, strict=True)
        assert windows[1 + number] == [(kl, nll, 23) for kl, nll in own]
        assert items[1 + number].kl == pytest.approx(expected.kl_A[number], rel=1e-12)
        assert items[1 + number].ppl == pytest.approx(expected.losses[number].perplexity)
        assert items[1 + number].kl_se > 0
    assert (items[0].name, items[0].kind, items[0].predicted_kl) == ("original", "original", None)
    assert items[0].matrix_bytes == sum(checkpoint.stored_nbytes(spec) for spec in checkpoint.matrices())
    assert (items[2].name, items[2].kind, items[2].predicted_kl) == ("optimal", "optimal", 0.3)
    assert (row.split, row.n_windows, row.n_tokens, row.n_allocations) == ("select", 8, 192, 8)
    assert row.token_hash == expected.original.token_sha256
    assert row.name == "choice"
    assert row.details["calibration"]["n"] == 8
    assert row.spearman == result["spearman"] == row.details["calibration"]["spearman"]["value"]
    assert row.spearman_low <= row.spearman <= row.spearman_high
    assert row.log_slope == result["log_slope"]
    assert row.kappa > 0
    assert row.residual_sd > 0
    # what is predicted here has nothing to do with what happens
    assert row.details["calibration"]["passes"] is False
    assert row.calibrated == result["calibrated"]
    assert row.calibrated is not True
    assert result["reanchor"] is True
    # the guard looks at the windows that are recorded
    nll = [np.array([loss for _, loss, _ in of_item]) for of_item in windows[1:3]]
    uniform = Candidate("uniform", items[1].matrix_bytes, nll[0], uniform=True, budget=10**6)
    optimal = Candidate("optimal", items[2].matrix_bytes, nll[1])
    choice = choose([uniform, optimal], np.array([n for _, _, n in windows[0]]))
    assert choice.challenger == 1
    assert row.winner_allocation_id == result["winner_allocation_id"] == given[choice.winner].id
    assert row.details["guard"]["kept"] == result["recommended"] == ("uniform", "optimal")[choice.winner]
    assert row.details["sentence"] == choice.sentence
    assert [entry["budget"] for entry in row.details["table"][1:4]] == [10**6, None, None]
    assert [entry["uniform"] for entry in row.details["table"][1:]] == [True] + 7 * [False]
    assert row.details["random"]["n"] == 6
    work = service.folder / "work" / "validations"
    assert not [path for path in work.iterdir() if path.is_dir()]


def test_what_cannot_be_validated_is_named(
    service: Any, model_id: str, calibration_id: str, tiny_model: Path, deep_model: Path, store: Callable[..., Stored]
) -> None:
    own, of_deep, other, partial = (
        store(lambda _: RTN[4], path) for path in (tiny_model, deep_model, *2 * [tiny_model])
    )
    with service.database.write() as session:
        known = session.get_one(Calibration, calibration_id)
        columns = {c.name: getattr(known, c.name) for c in Calibration.__table__.columns}
        session.add(Calibration(**columns | {"id": "cal_other", "content_hash": "other"}))
        session.flush()
        session.get_one(Allocation, other.id).calibration_id = "cal_other"
        row = session.scalars(select(AllocationItem).where(AllocationItem.allocation_id == partial.id)).first()
        session.delete(row)

    def given(*ids: str) -> list[Given]:
        params = ValidateParams(model_id=model_id, name="x", allocation_ids=list(ids))
        with service.database.read() as session:
            return get_allocations(session, params, open_checkpoint(tiny_model))

    with pytest.raises(NotFound, match="alloc_nobody"):
        given(own.id, "alloc_nobody")
    with pytest.raises(MissingInput, match="belongs to model"):
        given(of_deep.id)
    with pytest.raises(MissingInput, match=r"no config for matrix \d\."):
        given(partial.id)
    assert calibration_of(given(own.id, own.id)) == calibration_id
    with pytest.raises(ConfigError, match="several calibrations"):
        calibration_of(given(own.id, other.id))
    params = {"model_id": model_id, "name": "x", "allocation_ids": [own.id]}
    job = service.finish(service.submit(JobKind.VALIDATE, params | {"windows": {"length": 24, "count": 1}}))
    assert job.state == JobState.FAILED
    assert job.error["code"] == "invalid-config"
    assert "2 windows or more" in job.error["message"]
