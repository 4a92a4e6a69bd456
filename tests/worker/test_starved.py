"""After an attempt that ran out of memory: what has batches takes small ones, a sweep one config at a time."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from compress_core import CompressionConfig
from results_db.states import AttemptState, JobKind, JobState
from results_db.tables import Measurement

LARGE, SMALL = 4096, 512
CONFIGS = [
    {"b_q": b_q, "rank": rank, "codebook": "scalar", "iterations": 1, "seed": seed}
    for b_q, rank, seed in ((2, 0, 700), (2, 4, 700), (3, 4, 700), (3, 4, 701))
]

Starve = Callable[[str, Callable[..., Any]], list[Any]]


@pytest.fixture
def starve(monkeypatch: pytest.MonkeyPatch) -> Starve:
    """``starve(name, what)``: the first call of a function runs out of memory; ``what`` each call was told."""

    def replace(name: str, what: Callable[..., Any]) -> list[Any]:
        module, _, function = name.rpartition(".")
        real, told = getattr(import_module(module), function), []

        def hungry(*arguments: Any, **options: Any) -> Any:
            told.append(what(*arguments, **options))
            if len(told) == 1:
                raise MemoryError("no memory for this batch")
            return real(*arguments, **options)

        monkeypatch.setattr(name, hungry)
        return told

    return replace


@pytest.fixture
def streamed_id(service: Any, model_id: str, text_path: Path) -> str:
    """A calibration that keeps its tokens alone."""
    text = {"kind": "file", "path": str(text_path)}
    params = {"model_id": model_id, "text": text, "windows": {"length": 32, "count": 16}, "keep": "tokens"}
    return str(service.finish(service.submit(JobKind.CALIBRATE, params)).result["calibration_id"])


@pytest.fixture
def allocation_id(service: Any, model_id: str, calibration_id: str, tiny_model: Path) -> str:
    config = CompressionConfig.from_dict(CONFIGS[0])
    return str(service.allocate(model_id, calibration_id, tiny_model, lambda _: config))


@pytest.fixture
def params_of(
    model_id: str, calibration_id: str, streamed_id: str, allocation_id: str, text_path: Path
) -> Callable[[JobKind], dict[str, Any]]:
    text = {"text": {"kind": "file", "path": str(text_path)}, "windows": {"length": 16, "count": 5, "seed": 77}}
    kinds = {
        JobKind.CALIBRATE: text,
        JobKind.SENSITIVITY: text
        | {"calibration_id": calibration_id, "anchors": CONFIGS[:1], "methods": ["kl_anchor"]},
        JobKind.EVALUATE: text | {"windows": {"length": 16, "count": 5}},
        JobKind.VALIDATE: text | {"name": "starved", "allocation_ids": [allocation_id]},
        JobKind.SWEEP: {"calibration_id": streamed_id, "configs": CONFIGS[:1], "matrices": {"projections": ["k"]}},
        JobKind.COMPRESS: {"calibration_id": streamed_id, "allocation_id": allocation_id},
    }
    return lambda kind: kinds[kind] | {"model_id": model_id}


def starved_and_done(service: Any, kind: JobKind, params: dict[str, Any]) -> Any:
    """The job that failed once of it, and then succeeded."""
    job = service.finish(service.submit(kind, params))
    assert job.state == JobState.SUCCEEDED, job.error
    first, second = service.attempts(job.id)
    assert (first.state, first.error["code"]) == (AttemptState.FAILED, "out-of-memory")
    assert second.state == AttemptState.SUCCEEDED
    return job


def batch_option(*_arguments: Any, batch_tokens: int, **_options: Any) -> int:
    return batch_tokens


def batch_of_info(_checkpoint: Any, _tokens: Any, info: Any, *_arguments: Any, **_options: Any) -> int:
    return int(info.batch_tokens)


@pytest.mark.parametrize(
    ("kind", "name", "what"),
    [
        (JobKind.CALIBRATE, "worker.handlers.calibrate.calibrate_model", batch_option),
        (JobKind.SENSITIVITY, "worker.handlers.sensitivity.Bench", batch_option),
        (JobKind.EVALUATE, "worker.handlers.evaluate.evaluate_perplexity", batch_option),
        (JobKind.VALIDATE, "worker.handlers.validate.joint_losses", batch_option),
        (JobKind.SWEEP, "compress_core.calibrate.streamed.ForwardPass", batch_of_info),
        (JobKind.COMPRESS, "compress_core.calibrate.streamed.ForwardPass", batch_of_info),
    ],
)
def test_the_second_attempt_takes_the_small_batch(
    service: Any,
    params_of: Callable[[JobKind], dict[str, Any]],
    starve: Starve,
    kind: JobKind,
    name: str,
    what: Callable[..., Any],
) -> None:
    params = params_of(kind)
    told = starve(name, what)
    starved_and_done(service, kind, params)
    assert told == [LARGE, SMALL]


def rows(service: Any, sweep_id: str) -> dict[tuple[int, str, str], tuple[Any, ...]]:
    """What a sweep measured of each cell."""
    with service.database.read() as session:
        found = session.scalars(select(Measurement).where(Measurement.sweep_id == sweep_id)).all()
    return {
        (m.layer_idx, m.projection, m.config_hash): (
            m.raw_mse,
            m.normalized_mse,
            m.calibration_weighted_error,
            m.nbytes,
            m.residual_spectrum,
        )
        for m in found
    }


def test_a_starved_sweep_measures_one_config_at_a_time_and_the_same(
    service: Any, model_id: str, calibration_id: str, starve: Starve
) -> None:
    params = {"model_id": model_id, "calibration_id": calibration_id, "configs": CONFIGS}
    calm = service.finish(service.submit(JobKind.SWEEP, params))
    expected = rows(service, calm.result["sweep_id"])
    assert len(expected) == 14 * len(CONFIGS)
    told = starve(
        "worker.handlers.sweep.sweep_matrix",
        lambda _weight, _hessian, configs, *, shared=None, **_options: (len(configs), shared is None),
    )
    # by force: all of it is measured again
    job = starved_and_done(service, JobKind.SWEEP, params | {"force": True})
    assert told == [(len(CONFIGS), False), *len(expected) * [(1, True)]]
    assert job.result["replaced"] == len(expected)
    assert rows(service, job.result["sweep_id"]) == expected
