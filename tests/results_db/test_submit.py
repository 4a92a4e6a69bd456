"""Submit, cancel, pause, resume, retry, promote, skip, and the relay's half of the queue."""

from __future__ import annotations

from typing import Any

import pytest

from results_db.clock import utc_now
from results_db.errors import NotFound, WrongState
from results_db.queue.events import events_after
from results_db.queue.lease import fail_attempt, finish_attempt, lose_attempt, release_attempt
from results_db.queue.promote import next_server_job, promote_waiting, requeue_server_jobs, skip_rest_of_study
from results_db.queue.relay import due_attempts, handed_over, mark_enqueued, mark_taken_back
from results_db.queue.submit import cancel_job, pause_job, resume_job, retry_job, submit_job
from results_db.queue.transitions import change_state, get_job
from results_db.states import AttemptState, JobKind, JobState, StudyState
from results_db.tables import Model, Study

FINAL = {"code": "non-finite-values", "message": "NaN", "retryable": False}


@pytest.fixture
def study_id(queue: Any) -> str:
    with queue.database.write() as session:
        session.add(Model(id="mod_1", name="tiny", source="x", created_at=utc_now()))
        session.flush()
        session.add(Study(id="std_1", name="s", model_id="mod_1", state="running", config={}, on_no_go="stop"))
    return "std_1"


def test_a_submitted_job_has_an_attempt_that_the_relay_sees(queue: Any) -> None:
    first, second = queue.submit(), queue.submit(priority=5)
    ids = list(queue.do(due_attempts))
    assert ids == [queue.attempts(second)[0].id, queue.attempts(first)[0].id], "urgent ones first"
    assert list(queue.do(due_attempts, 1)) == ids[:1]
    queue.do(mark_enqueued, ids)
    assert set(queue.do(handed_over)) == set(ids)
    queue.do(mark_taken_back, ids[:1])
    assert list(queue.do(handed_over)) == ids[1:]
    queue.run(first)
    assert list(queue.do(due_attempts)) == ids[:1], "a running attempt is not sent again"
    assert list(queue.do(handed_over)) == []


def test_server_jobs_have_no_attempts(queue: Any) -> None:
    job_id = queue.submit(JobKind.FIT)
    assert queue.attempts(job_id) == []
    assert queue.do(next_server_job).id == job_id
    assert queue.do(next_server_job) is None
    assert queue.do(requeue_server_jobs) == 1
    assert queue.job(job_id).state == JobState.QUEUED


@pytest.mark.parametrize("prepare", ["queued", "waiting", "paused"])
def test_cancel_before_it_runs(queue: Any, prepare: str) -> None:
    job_id = queue.submit(depends_on=[queue.submit()] if prepare == "waiting" else ())
    if prepare == "paused":
        queue.do(pause_job, job_id)
    queue.do(cancel_job, job_id)
    assert queue.job(job_id).state == JobState.CANCELLED
    assert AttemptState.QUEUED not in queue.states(job_id)
    assert job_id not in {a.job_id for a in queue.attempts(job_id) if a.state == "queued"}
    with pytest.raises(WrongState, match="already cancelled"):
        queue.do(cancel_job, job_id)


def test_a_cancelled_attempt_cannot_be_claimed(queue: Any) -> None:
    job_id = queue.submit()
    queue.do(cancel_job, job_id)
    assert queue.claim(job_id) is None


def test_cancel_while_it_runs_is_a_request(queue: Any) -> None:
    job_id = queue.submit()
    claim = queue.run(job_id)
    queue.do(cancel_job, job_id)
    assert (queue.job(job_id).state, queue.job(job_id).cancel_requested) == (JobState.RUNNING, True)
    queue.do(release_attempt, claim, to=JobState.CANCELLED)
    job = queue.job(job_id)
    assert (job.state, job.cancel_requested) == (JobState.CANCELLED, False)
    assert queue.states(job_id) == [AttemptState.CANCELLED]


def test_pause_and_resume(queue: Any) -> None:
    job_id = queue.submit()
    queue.do(pause_job, job_id)
    assert queue.states(job_id) == [AttemptState.RELEASED]
    with pytest.raises(WrongState, match="only a waiting, queued or running"):
        queue.do(pause_job, job_id)
    queue.do(resume_job, job_id)
    claim = queue.run(job_id)
    queue.do(pause_job, job_id)
    queue.do(release_attempt, claim, to=JobState.PAUSED)
    assert queue.job(job_id).state == JobState.PAUSED
    queue.do(resume_job, job_id)
    queue.do(finish_attempt, queue.run(job_id), {})
    assert queue.states(job_id) == [AttemptState.RELEASED, AttemptState.RELEASED, AttemptState.SUCCEEDED]
    with pytest.raises(WrongState, match="only a paused job"):
        queue.do(resume_job, job_id)


def test_retry_gives_all_attempts_again(queue: Any) -> None:
    job_id = queue.submit(max_attempts=1)
    queue.do(fail_attempt, queue.run(job_id), FINAL | {"retryable": True})
    assert queue.job(job_id).state == JobState.FAILED
    queue.do(retry_job, job_id)
    job = queue.job(job_id)
    assert (job.state, job.error, job.finished_at, job.max_attempts) == (JobState.QUEUED, None, None, 2)
    with pytest.raises(WrongState):
        queue.do(retry_job, job_id)
    queue.do(finish_attempt, queue.run(job_id), {})
    with pytest.raises(WrongState):
        queue.do(retry_job, job_id)


def test_unknown_job(queue: Any) -> None:
    for action in (cancel_job, pause_job, resume_job, retry_job, get_job):
        with pytest.raises(NotFound, match="job_none"):
            queue.do(action, "job_none")


def test_promote_takes_parameters_from_results(queue: Any) -> None:
    first = queue.submit(JobKind.CALIBRATE)
    second = queue.submit(depends_on=[first], inputs={"calibration_id": {"job": first, "key": "calibration_id"}})
    assert queue.do(promote_waiting) == 0
    queue.do(finish_attempt, queue.run(first), {"calibration_id": "cal_9"})
    assert queue.do(promote_waiting) == 1
    assert queue.run(second).params == {"model_id": "mod_1", "calibration_id": "cal_9"}


def test_what_needs_a_failed_job_is_skipped_and_a_gate_runs_anyway(queue: Any) -> None:
    first = queue.submit()
    needs = queue.submit(depends_on=[first])
    gate = queue.submit(JobKind.GATE, depends_on=[first], run_when="finished", inputs={"x": {"job": first, "key": "x"}})
    queue.do(fail_attempt, queue.run(first), FINAL)
    assert queue.do(promote_waiting) == 2
    assert queue.job(needs).state == JobState.SKIPPED
    assert first in queue.job(needs).error["message"]
    assert (queue.job(gate).state, queue.job(gate).params["x"]) == (JobState.QUEUED, None)


def test_a_no_go_skips_the_rest_and_a_retry_brings_it_back(queue: Any, study_id: str) -> None:
    first = queue.submit(study_id=study_id, step="a", position=0)
    rest = [
        queue.submit(study_id=study_id, step=step, position=number, depends_on=[first])
        for number, step in enumerate("bc", 1)
    ]
    claim = queue.run(first)
    queue.do(fail_attempt, claim, FINAL)
    assert queue.do(skip_rest_of_study, study_id, "the gate said NO-GO") == 2
    assert {queue.job(job_id).state for job_id in rest} == {JobState.SKIPPED}
    with queue.database.write() as session:
        session.get_one(Study, study_id).state = StudyState.STOPPED.value
    queue.do(retry_job, first)
    assert {queue.job(job_id).state for job_id in rest} == {JobState.WAITING}
    with queue.database.read() as session:
        assert session.get_one(Study, study_id).state == StudyState.RUNNING


def test_a_no_go_stops_queued_layers_of_a_split_sweep(queue: Any, study_id: str) -> None:
    """Only waiting jobs were skipped once: the layers of a sweep that nobody wanted any more went on being measured."""
    step = {"study_id": study_id, "position": 1}
    parts = [queue.submit(step=f"sweep:layer-{n}", **step) for n in range(3)]
    whole = queue.submit(step="sweep", depends_on=parts, **step)
    running = queue.run(parts[0])
    assert queue.do(skip_rest_of_study, study_id, "the gate said NO-GO") == 3
    assert [queue.job(job_id).state for job_id in (*parts, whole)] == ["running", "skipped", "skipped", "skipped"]
    assert queue.states(parts[1]) == [AttemptState.RELEASED]
    assert queue.claim(parts[1]) is None
    queue.do(finish_attempt, running, {})
    assert queue.do(promote_waiting) == 0


def test_a_pause_that_is_withdrawn_before_the_stop_is_none(queue: Any) -> None:
    """The worker has heard of the pause and comes to its stop: the job goes on."""
    job_id = queue.submit()
    claim = queue.run(job_id)
    queue.do(pause_job, job_id)
    resumed = queue.do(resume_job, job_id)
    assert (resumed.state, resumed.pause_requested) == (JobState.RUNNING, False)
    with pytest.raises(WrongState, match="only a paused job"):
        queue.do(resume_job, job_id)
    queue.do(release_attempt, claim, to=JobState.PAUSED)
    assert queue.job(job_id).state == JobState.QUEUED
    assert queue.states(job_id) == [AttemptState.RELEASED, AttemptState.QUEUED]


def test_pausing_a_split_sweep_and_resuming_it_at_once_leaves_no_layer_behind(queue: Any) -> None:
    whole_id = "job_whole"
    params = {"model_id": "mod_1", "part_of": whole_id}
    parts = [queue.do(submit_job, JobKind.SWEEP, params | {"matrices": {"layers": [layer]}}).id for layer in range(3)]
    queue.submit(id=whole_id, depends_on=parts)
    claim = queue.run(parts[0])
    queue.do(pause_job, whole_id)
    queue.do(resume_job, whole_id)
    queue.do(release_attempt, claim, to=JobState.PAUSED)
    assert [queue.job(job_id).state for job_id in (*parts, whole_id)] == ["queued", "queued", "queued", "waiting"]
    for part in parts:
        queue.do(finish_attempt, queue.run(part), {"n_cells": 1})
    assert queue.do(promote_waiting) == 1
    assert queue.job(whole_id).state == JobState.QUEUED


def test_a_dead_layer_fails_the_whole_and_a_retry_revives_both(queue: Any) -> None:
    whole_id = "job_whole"
    params = {"model_id": "mod_1", "part_of": whole_id}
    parts = [
        queue.do(submit_job, JobKind.SWEEP, params | {"matrices": {"layers": [layer]}}, max_attempts=1).id
        for layer in range(2)
    ]
    queue.submit(id=whole_id, depends_on=parts)
    queue.do(finish_attempt, queue.run(parts[0]), {"n_cells": 1})
    queue.run(parts[1])
    queue.do(lose_attempt, queue.attempts(parts[1])[-1], "killed", traceback="in viterbi", remains={"signal": 9})
    assert queue.job(parts[1]).state == JobState.DEAD
    assert queue.do(promote_waiting) == 1
    error = queue.job(whole_id).error
    assert "layer 1" in error["message"]
    assert "is dead" in error["message"]
    assert (error["traceback"], error["signal"]) == ("in viterbi", 9)
    queue.do(retry_job, whole_id)
    assert [queue.job(job_id).state for job_id in (*parts, whole_id)] == ["succeeded", "queued", "waiting"]


def test_a_change_that_the_state_forbids(queue: Any) -> None:
    job_id = queue.submit()
    with pytest.raises(WrongState, match="cannot become succeeded"):
        queue.do(lambda session: change_state(session, get_job(session, job_id), JobState.SUCCEEDED))


def test_events_are_read_from_where_one_left(queue: Any) -> None:
    a, b = queue.submit(), queue.submit()
    queue.run(a)
    with queue.database.read() as session:
        everything = events_after(session, 0)
        assert [e.job_id for e in everything] == [a, b, a]
        assert [e.id for e in everything] == sorted({e.id for e in everything})
        assert events_after(session, everything[1].id) == everything[2:]
        assert [e.state for e in events_after(session, 0, job_id=a)] == ["queued", "running"]
        assert len(events_after(session, 0, limit=1)) == 1
