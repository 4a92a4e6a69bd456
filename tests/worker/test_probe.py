"""A probe: one row of rates, from which a plan can be priced."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from compress_core import NUMERICS_VERSION, CompressionConfig
from compress_core.plan.operations import Size
from compress_core.plan.rates import Rates
from results_db.states import JobKind, JobState
from results_db.tables import Throughput


def test_a_probe_records_the_rates_of_its_device(service: Any) -> None:
    configs = [{"codebook": "scalar", "b_q": 2, "rank": 4}, {"codebook": "rtn", "b_q": 2}]
    # a second of measuring: every config on the smallest matrix alone
    job = service.finish(service.submit(JobKind.PROBE, {"configs": configs, "seconds": 1.0}))
    assert job.state == JobState.SUCCEEDED, job.error
    assert job.progress["done"] == job.progress["total"] > 0
    with service.database.read() as session:
        row = session.scalars(select(Throughput).where(Throughput.job_id == job.id)).one()
    assert job.result["throughput_id"] == row.id
    assert (row.device_kind, row.numerics_version) == ("cpu", NUMERICS_VERSION)
    assert row.device_name == job.result["device_name"]
    rates = Rates.from_dict(row.rates)
    config = CompressionConfig.from_dict(configs[0])
    assert rates.knows(config)
    assert rates.seconds("start", Size(64, 64), config) > 0
