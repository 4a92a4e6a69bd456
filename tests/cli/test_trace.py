"""One trace id goes from the request through the server's log and the job's row to the worker's log."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("stack")]


def lines_of(path: Path, trace_id: str) -> list[dict[str, Any]]:
    """The log lines that carry a trace id; every line of ours is JSON."""
    found = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
    return [line for line in found if line.get("trace_id") == trace_id]


def submit(url: str, body: dict[str, Any], trace_id: str) -> dict[str, Any]:
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    answer = httpx.post(f"{url}/api/v1/probes", json=body, headers=headers, trust_env=False, timeout=60)
    assert answer.status_code == 202, answer.text
    assert answer.headers["X-Trace-Id"] == trace_id
    return dict(answer.json())


def test_both_logs_of_a_job_share_its_trace(stack: Any, until: Callable[..., None], model: str) -> None:
    trace_id = os.urandom(16).hex()
    url = stack.record.url
    job = submit(url, {"seconds": 1, "configs": [{"b_q": 2, "rank": 0, "codebook": "rtn"}]}, trace_id)
    assert job["trace_id"] == trace_id

    def ended() -> bool:
        row = httpx.get(f"{url}/api/v1/jobs/{job['id']}", trust_env=False).json()
        assert row["state"] not in ("failed", "dead"), row["error"]
        return bool(row["state"] == "succeeded")

    until(ended)
    logs = stack.var_dir / "log"
    (asked,) = lines_of(logs / "server.log", trace_id)
    assert (asked["message"], asked["status"]) == ("POST /api/v1/probes 202", 202)
    worked = [line for path in sorted(logs.glob("worker*.log")) for line in lines_of(path, trace_id)]
    assert {line["job_id"] for line in worked} == {job["id"]}
    assert all(line["attempt_id"].startswith("att_") for line in worked)
    assert "begins" in worked[0]["message"]
    assert "succeeded" in worked[-1]["message"]


def test_a_refusal_has_a_trace_too(stack: Any) -> None:
    answer = httpx.post(f"{stack.record.url}/api/v1/probes", json={"nonsense": 1}, trust_env=False)
    assert answer.status_code == 422
    (line,) = lines_of(stack.var_dir / "log" / "server.log", answer.headers["X-Trace-Id"])
    assert line["status"] == 422
