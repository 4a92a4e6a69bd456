"""Parameters from the results of earlier jobs: lists, alternatives, what is optional, and what is not needed."""

from __future__ import annotations

from typing import Any

from results_db.queue.lease import fail_attempt, finish_attempt
from results_db.queue.promote import promote_waiting
from results_db.queue.submit import retry_job
from results_db.states import JobState

FAILURE = {"code": "broken", "message": "broken", "retryable": False}


def source(job: str, key: str, *, optional: bool = False) -> dict[str, Any]:
    return {"job": job, "key": key} | ({"optional": True} if optional else {})


def finish(queue: Any, job_id: str, **result: Any) -> None:
    queue.do(finish_attempt, queue.run(job_id), result)


def fail(queue: Any, job_id: str) -> None:
    queue.do(fail_attempt, queue.run(job_id), FAILURE)


def test_a_list_is_gathered_without_what_is_missing(queue: Any) -> None:
    one, several, broken = queue.submit(), queue.submit(), queue.submit()
    inputs = {
        "names": [source(one, "id"), source(several, "ids"), source(broken, "id", optional=True), source(one, "id")]
    }
    job = queue.submit(depends_on=[one, several, broken], inputs=inputs)
    finish(queue, one, id="a")
    finish(queue, several, ids=["b", "a", "c"])
    fail(queue, broken)
    queue.do(promote_waiting)
    assert queue.run(job).params["names"] == ["a", "b", "c"]


def test_what_is_not_optional_is_needed(queue: Any) -> None:
    one, broken = queue.submit(), queue.submit()
    lenient, strict = source(broken, "id", optional=True), source(broken, "id")
    job = queue.submit(depends_on=[one, broken], inputs={"a": [source(one, "id"), lenient], "b": strict})
    finish(queue, one, id="a")
    fail(queue, broken)
    queue.do(promote_waiting)
    assert queue.job(job).state == JobState.SKIPPED
    assert broken in queue.job(job).error["message"]


def test_the_first_that_is_there(queue: Any) -> None:
    better, first = queue.submit(), queue.submit()
    inputs = {"id": {"first": [source(better, "id", optional=True), source(first, "id")]}}
    jobs = [queue.submit(depends_on=[better, first], inputs=inputs) for _ in range(2)]
    fail(queue, better)
    finish(queue, first, id="first")
    queue.do(promote_waiting)
    assert [queue.run(job).params["id"] for job in jobs] == ["first", "first"]
    better, first = queue.submit(), queue.submit()
    inputs = {"id": {"first": [source(better, "id", optional=True), source(first, "id")]}}
    job = queue.submit(depends_on=[better, first], inputs=inputs)
    finish(queue, better, id="better")
    finish(queue, first, id="first")
    queue.do(promote_waiting)
    assert queue.run(job).params["id"] == "better"


def test_what_is_not_needed_is_skipped_with_all_that_builds_on_it(queue: Any) -> None:
    check = queue.submit(step="validate")
    only_if = {"only_if": source(check, "reanchor")}
    repair = queue.submit(depends_on=[check], inputs=only_if)
    built = queue.submit(depends_on=[repair], inputs={"id": source(repair, "id")})
    end = queue.submit(
        depends_on=[check, built], inputs={"id": {"first": [source(built, "id", optional=True), source(check, "id")]}}
    )
    finish(queue, check, id="checked", reanchor=False)
    while queue.do(promote_waiting):
        pass
    for job in (repair, built):
        assert queue.job(job).state == JobState.SKIPPED
        assert queue.job(job).error["code"] == "not-needed"
        assert queue.job(job).error["message"] == f"not needed: validate ({check}) says reanchor: no"
    assert queue.run(end).params["id"] == "checked"


def test_what_is_needed_runs_and_sees_no_such_parameter(queue: Any) -> None:
    check = queue.submit()
    repair = queue.submit(depends_on=[check], inputs={"only_if": source(check, "reanchor")})
    finish(queue, check, reanchor=True)
    queue.do(promote_waiting)
    assert "only_if" not in queue.run(repair).params


def test_a_question_that_nobody_answered_is_no_reason_to_skip_quietly(queue: Any) -> None:
    check = queue.submit()
    repair = queue.submit(depends_on=[check], inputs={"only_if": source(check, "reanchor")})
    fail(queue, check)
    queue.do(promote_waiting)
    assert queue.job(repair).error["code"] == "skipped"
    queue.do(retry_job, check)
    queue.do(retry_job, repair)
    finish(queue, check, reanchor=True)
    queue.do(promote_waiting)
    assert queue.job(repair).state == JobState.QUEUED
