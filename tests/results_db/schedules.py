"""Random schedules over the real transitions: what workers, servers, Redis, clocks and people do to a few jobs.

Everything goes through the code that runs in production, the relay included; only Redis is a list in memory, which may
be flushed, shuffled and filled with duplicates. What must hold is checked after every step, and at the end of every
schedule the world is put in order: then every job must end, since every queued attempt is delivered.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import pairwise
from typing import Any, ClassVar

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from results_db import Database
from results_db.base import Base
from results_db.clock import db_now, utc_now
from results_db.errors import LeaseLost, WrongState
from results_db.queries.parts import part_of
from results_db.queue.backoff import Backoff
from results_db.queue.control import pause_queue, queue_state, resume_queue
from results_db.queue.jumps import has_impossible_ends, shorten_impossible_ends
from results_db.queue.lease import (
    Claim,
    claim_attempt,
    fail_attempt,
    finish_attempt,
    heartbeat,
    lose_attempt,
    reap_expired,
    release_attempt,
)
from results_db.queue.promote import next_server_job, promote_waiting, requeue_server_jobs
from results_db.queue.relay import due_attempts
from results_db.queue.submit import cancel_job, pause_job, resume_job, retry_job, set_priority, submit_job
from results_db.queue.tally import tally_sweeps
from results_db.queue.transitions import change_state, get_job
from results_db.queue.workers import drain_worker
from results_db.recording import record_measurement, record_sweep
from results_db.states import ALLOWED, TERMINAL, AttemptState, JobKind, JobState
from results_db.tables import Artefact, Attempt, Calibration, Job, JobEvent, Measurement, Model, Worker
from server.relay import Relay

LIVE = (AttemptState.QUEUED, AttemptState.RUNNING)
LEASE_S, HOUR_S = 45.0, 3600.0
LAYERS, HASHES = (0, 1), ("h0", "h1")
WORKERS = ("one", "two", "three")
#: attempts that the relay tells of at once; fewer than there can be
WINDOW = 3
#: turns of an undisturbed service within which every job must have ended
PATIENCE = 40

Cell = tuple[int, str]


class Longest(Backoff):
    """Waits that do not depend on luck."""

    def draw_s(self, failures: int) -> float:
        return self.longest_s(failures)


BACKOFF = Longest(base_s=100.0, cap_s=1000.0)
LIMITS = {"lease_s": LEASE_S, "longest_wait_s": BACKOFF.cap_s}


class PaperRelay(Relay):
    """The relay, and a Redis on paper."""

    def __init__(self, database: Database) -> None:
        self.now_s = 0.0
        self.listed: list[str] = []
        #: what workers took from the list and RQ holds as started
        self.taken: set[str] = set()
        #: it dies between telling Redis and telling the database
        self.dies = False
        super().__init__(database, "unix:///nowhere/redis.sock", window=WINDOW, clock=lambda: self.now_s)

    def _look(self) -> tuple[list[str], set[str]]:
        return list(self.listed), set(self.taken)

    def _enqueue(self, attempt_id: str) -> None:
        self.listed.append(attempt_id)

    def _reorder(self, order: tuple[str, ...]) -> None:
        self.listed = [id_ for id_ in order if id_ in self.listed]

    def _remember(self, there: set[str], taken_back: set[str]) -> None:
        if not self.dies:
            super()._remember(there, taken_back)


class Schedules(RuleBasedStateMachine):
    """A calibration, a sweep that needs it and is split into two layers, a fit after it, and a job of its own."""

    database: ClassVar[Database]
    #: "schedules", "steps", and how often what happened
    tally: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.tally["schedules"] += 1
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
            _furnish(session)
            first = submit_job(session, JobKind.CALIBRATE, {}, max_attempts=2)
            params = {"model_id": "mod", "calibration_id": "cal"}
            sweep = submit_job(session, JobKind.SWEEP, params, depends_on=[first.id], max_attempts=2)
            submit_job(session, JobKind.FIT, {}, depends_on=[sweep.id], run_when="finished")
            submit_job(session, JobKind.EVALUATE, {}, max_attempts=1)
        self.relay = PaperRelay(self.database)
        self.claims: list[Claim] = []
        #: ids that workers hold in their hands, not yet claimed
        self.delivered: list[str] = []
        #: what each claim's worker was told to do
        self.heard: dict[str, JobState] = {}
        self.measured: dict[Cell, str] = {}
        self.before: dict[str, JobState] = {}
        self.may_revive = False

    # --- Redis and its doorbell ---

    @rule(dies=st.sampled_from([False, False, False, True]))
    def ring(self, dies: bool) -> None:
        self.relay.dies = dies
        self.relay.step()
        self.relay.dies = False
        with self.database.read() as session:
            due = list(due_attempts(session, WINDOW))
        listed = self.relay.listed
        assert listed == [id_ for id_ in due if id_ in listed], "the list follows the database's order"
        assert set(due) - set(listed) <= self.relay.taken, "what is due is in the list or on its way"

    @precondition(lambda self: self.relay.listed)
    @rule()
    def a_worker_takes(self) -> None:
        id_ = self.relay.listed.pop(0)
        self.relay.taken.add(id_)
        self.delivered.append(id_)

    @precondition(lambda self: self.delivered)
    @rule(data=st.data(), worker=st.sampled_from(WORKERS), again=st.booleans())
    def a_worker_claims(self, data: st.DataObject, worker: str, again: bool) -> None:
        """In any order, and perhaps twice."""
        id_ = data.draw(st.sampled_from(self.delivered))
        if not again:
            self.delivered.remove(id_)
        self._claim(id_, worker)

    @rule(data=st.data(), worker=st.sampled_from(WORKERS))
    def an_old_message_arrives(self, data: st.DataObject, worker: str) -> None:
        """Of an attempt that may wait, run, or have ended long ago."""
        with self.database.read() as session:
            newest_first = select(Attempt.id).order_by(Attempt.created_at.desc(), Attempt.id.desc()).limit(4)
            id_ = data.draw(st.sampled_from(list(session.scalars(newest_first))))
        self._claim(id_, worker)

    @precondition(lambda self: self.delivered)
    @rule()
    def a_worker_dies_before_its_claim(self) -> None:
        self.delivered.pop()

    @rule(data=st.data())
    def redis_misbehaves(self, data: st.DataObject) -> None:
        what = data.draw(st.sampled_from(["flush", "shuffle", "double"]))
        if what == "flush":
            self.relay.listed, self.relay.taken = [], set()
        elif what == "shuffle":
            self.relay.listed = data.draw(st.permutations(self.relay.listed))
        else:
            with self.database.read() as session:
                known = session.scalars(select(Attempt.id).order_by(Attempt.created_at, Attempt.id)).all()
            if known:
                self.relay.listed.append(data.draw(st.sampled_from(known)))
        self.tally[what] += 1

    # --- workers ---

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), action=st.sampled_from(["beat", "record", "finish", "fail", "again", "shutdown", "stop"]))
    def a_worker_works(self, data: st.DataObject, action: str) -> None:
        """Perhaps one that was given up long ago."""
        claim = data.draw(st.sampled_from(self.claims))
        owns = self._owns(claim)
        try:
            self._act(claim, action, data)
        except LeaseLost:
            assert not owns
            self.tally["fenced"] += 1
        else:
            assert owns, f"{action} under a stale token"

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def a_horse_dies(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        owns = self._owns(claim)
        with self.database.write() as session:
            attempt = session.get_one(Attempt, claim.attempt_id)
            # the parent names the attempt, whoever holds it now: an attempt has one process
            assert lose_attempt(session, attempt, "killed", backoff=BACKOFF, remains={"signal": 9}) == owns
        self.relay.taken.discard(claim.attempt_id)

    @rule(data=st.data(), worker=st.sampled_from(WORKERS))
    def an_attempt_kills_its_worker(self, data: st.DataObject, worker: str) -> None:
        """Again and again: the way to ``dead``."""
        with self.database.read() as session:
            queued = select(Attempt.id).where(Attempt.state == AttemptState.QUEUED.value).order_by(Attempt.id)
            ids = list(session.scalars(queued))
        claim = self._claim(data.draw(st.sampled_from(ids)), worker) if ids else None
        if claim is not None:
            with self.database.write() as session:
                lose_attempt(session, session.get_one(Attempt, claim.attempt_id), "poison", backoff=BACKOFF)
            self.relay.taken.discard(claim.attempt_id)
            self.tally["killed"] += 1

    # --- servers ---

    @rule(part=st.sampled_from(["mend", "reap", "promote", "tally", "orphans", "server job", "server dies"]))
    def a_server_turns(self, part: str) -> None:
        with self.database.write() as session:
            self._turn(session, part)

    # --- clocks ---

    @rule(what=st.sampled_from(["leases", "waits", "minutes"]))
    def time_passes(self, what: str) -> None:
        self.relay.now_s += 20.0
        if what in ("leases", "minutes"):
            self._set(lease_expires_at=db_now(-1))
        if what in ("waits", "minutes"):
            self._set(available_at=db_now(-1))

    @rule(hours=st.sampled_from([-1, 1]))
    def the_wall_clock_jumps(self, hours: int) -> None:
        """Backward: what was to end soon ends an hour later, by the new clock."""
        shift = timedelta(seconds=-hours * HOUR_S)
        with self.database.write() as session:
            for attempt in session.scalars(select(Attempt).where(Attempt.state.in_(LIVE))):
                if attempt.lease_expires_at is not None:
                    attempt.lease_expires_at += shift
                if attempt.available_at is not None:
                    attempt.available_at += shift

    # --- people ---

    @rule(data=st.data(), ask=st.sampled_from([cancel_job, pause_job, resume_job, resume_job, retry_job]))
    def a_person_asks(self, data: st.DataObject, ask: Any) -> None:
        job_id = data.draw(st.sampled_from(self._job_ids()))
        self.may_revive = ask is retry_job
        try:
            with self.database.write() as session:
                ask(session, job_id)
        except WrongState:
            return

    @rule(data=st.data(), priority=st.integers(-2, 2))
    def a_person_hurries(self, data: st.DataObject, priority: int) -> None:
        try:
            with self.database.write() as session:
                set_priority(session, data.draw(st.sampled_from(self._job_ids())), priority)
        except WrongState:
            return

    @rule(pause=st.booleans())
    def a_person_turns_the_switch(self, pause: bool) -> None:
        with self.database.write() as session:
            if pause:
                pause_queue(session, "a person")
            else:
                resume_queue(session)

    @rule(worker=st.sampled_from(WORKERS[:2]), drain=st.booleans())
    def a_worker_is_drained_or_started_anew(self, worker: str, drain: bool) -> None:
        with self.database.write() as session:
            if drain:
                drain_worker(session, worker)
            else:
                session.get_one(Worker, worker).drain_requested = False

    # --- what must hold ---

    @invariant()
    def holds(self) -> None:
        self.tally["steps"] += 1
        with self.database.read() as session:
            jobs = session.scalars(select(Job).order_by(Job.id)).all()
            attempts: dict[str, list[Attempt]] = {job.id: [] for job in jobs}
            for attempt in session.scalars(select(Attempt).order_by(Attempt.number)):
                attempts[attempt.job_id].append(attempt)
            history: dict[str, list[str]] = {job.id: [] for job in jobs}
            for job_id, state in session.execute(select(JobEvent.job_id, JobEvent.state).order_by(JobEvent.id)):
                history[job_id].append(state)
            for job in jobs:
                self._check(job, attempts[job.id], history[job.id])
            self._check_measurements(session)
        self.before = {job.id: JobState(job.state) for job in jobs}
        self.may_revive = False

    def _check(self, job: Job, attempts: list[Attempt], history: list[str]) -> None:
        states = [AttemptState(a.state) for a in attempts]
        assert [a.number for a in attempts] == list(range(1, len(attempts) + 1)), "attempts count up without gaps"
        live = [state for state in states if state in LIVE]
        if job.kind != JobKind.FIT:
            expected = {JobState.QUEUED: [AttemptState.QUEUED], JobState.RUNNING: [AttemptState.RUNNING]}
            assert live == expected.get(JobState(job.state), []), "a live job has one live attempt, and no other has"
        assert all(state not in LIVE for state in states[:-1]), "only the newest attempt lives"
        assert all((a.finished_at is not None) == (a.state not in LIVE) for a in attempts)
        counted = sum(state in (AttemptState.FAILED, AttemptState.LOST) for state in states)
        assert counted <= job.max_attempts
        assert (job.finished_at is not None) == (JobState(job.state) in TERMINAL)
        if job.state == JobState.SUCCEEDED and attempts:
            assert job.result == {"by": attempts[-1].id, "n_cells": 1, "recorded": 0}, "the live attempt's result alone"
            assert states[-1] == AttemptState.SUCCEEDED
        if self.before.get(job.id) in TERMINAL and job.state != self.before[job.id]:
            assert self.may_revive, "a terminal state is left by a person's retry alone"
        assert history[-1] == job.state, "every change is told"
        for before, after in pairwise(history):
            assert before == after or JobState(after) in ALLOWED[JobState(before)]

    def _check_measurements(self, session: Session) -> None:
        rows = session.execute(select(Measurement.layer_idx, Measurement.config_hash, Measurement.attempt_id)).all()
        assert len(rows) == len(self.measured), "no measurement is lost or doubled"
        assert {(row[0], row[1]): row[2] for row in rows} == self.measured, "the first one stays"

    def teardown(self) -> None:
        """Nobody disturbs the service any more: every job ends."""
        try:
            self._settle()
        finally:
            self.relay.close()

    # --- helpers ---

    def _settle(self) -> None:
        with self.database.write() as session:
            resume_queue(session)
            session.execute(update(Worker).values(drain_requested=False))
        self._set(lease_expires_at=db_now(-1))
        self.delivered.clear()
        self.claims.clear()
        for _ in range(PATIENCE):
            with self.database.read() as session:
                ended = all(JobState(job.state) in TERMINAL for job in session.scalars(select(Job)))
            if ended:
                break
            self._undisturbed_turn()
        else:
            with self.database.read() as session:
                stuck = {job.id: (job.kind, job.state) for job in session.scalars(select(Job))}
            raise AssertionError(f"these do not end: {stuck}")
        self.holds()
        with self.database.read() as session:
            for job in session.scalars(select(Job).where(Job.kind == JobKind.SWEEP.value)):
                if job.state == JobState.SUCCEEDED:
                    assert set(_cells(job.params)) <= set(self.measured), "a sweep that succeeded measured its cells"

    def _undisturbed_turn(self) -> None:
        self._set(available_at=None)
        for job_id in self._job_ids():
            with self.database.write() as session:
                if get_job(session, job_id).state == JobState.PAUSED:
                    resume_job(session, job_id)
        for part in ("mend", "reap", "orphans", "promote", "server job"):
            with self.database.write() as session:
                self._turn(session, part)
        self.relay.now_s += 20.0
        self.ring(dies=False)
        for id_ in list(self.relay.listed):
            self.a_worker_takes()
            self.delivered.remove(id_)
            claim = self._claim(id_, WORKERS[2])
            if claim is not None:
                self._finish(claim)
        self.holds()

    def _turn(self, session: Session, part: str) -> None:
        if part == "mend":
            shorten_impossible_ends(session, **LIMITS)
            assert not has_impossible_ends(session, **LIMITS)
        elif part == "reap":
            for id_ in reap_expired(session, backoff=BACKOFF):
                self.relay.taken.discard(id_)
        elif part == "promote":
            promote_waiting(session)
        elif part == "tally":
            tally_sweeps(session)
        elif part == "orphans":
            requeue_server_jobs(session)
        else:
            job = next_server_job(session)
            assert job is None or queue_state(session).paused_at is None
            if job is not None and part == "server job":
                change_state(session, job, JobState.SUCCEEDED, result={"by": "the server"})

    def _claim(self, id_: str, worker: str) -> Claim | None:
        with self.database.read() as session:
            attempt = session.get_one(Attempt, id_)
            now = session.scalar(select(db_now()))
            free = attempt.state == AttemptState.QUEUED
            due = attempt.available_at is None or (now is not None and attempt.available_at <= now)
            runs = queue_state(session).paused_at is None
            takes = not session.get_one(Worker, worker).drain_requested
        with self.database.write() as session:
            claim = claim_attempt(session, id_, worker_id=worker, lease_s=LEASE_S)
        assert (claim is not None) == (free and due and runs and takes)
        if claim is None:
            self.tally["refused"] += 1
            with self.database.read() as session:
                assert session.get_one(Attempt, id_).state == attempt.state, "a refused claim changes nothing"
            if attempt.state != AttemptState.RUNNING:
                self.relay.taken.discard(id_)
            return None
        self.tally["claims"] += 1
        self.claims.append(claim)
        return claim

    def _act(self, claim: Claim, action: str, data: st.DataObject) -> None:
        if action == "finish":
            self._finish(claim)
        elif action == "record":
            cells = _cells(claim.params) if claim.kind == JobKind.SWEEP else []
            if cells:
                self._record(claim, data.draw(st.sampled_from(cells)))
            else:
                self._beat(claim)
        elif action == "beat":
            self._beat(claim)
        else:
            with self.database.write() as session:
                if action == "shutdown":
                    release_attempt(session, claim, to=JobState.QUEUED)
                elif action == "stop":
                    release_attempt(session, claim, to=self.heard.get(claim.attempt_id, JobState.QUEUED))
                else:
                    error = {"code": "x", "message": "x", "retryable": action == "again"}
                    fail_attempt(session, claim, error, backoff=BACKOFF)
            self.relay.taken.discard(claim.attempt_id)

    def _beat(self, claim: Claim) -> None:
        with self.database.write() as session:
            beat = heartbeat(session, claim, lease_s=LEASE_S, progress={"done": 1, "total": 2, "eta_s": None})
        if beat.cancel_requested:
            self.heard[claim.attempt_id] = JobState.CANCELLED
        elif beat.pause_requested:
            self.heard.setdefault(claim.attempt_id, JobState.PAUSED)

    def _record(self, claim: Claim, cell: Cell) -> None:
        with self.database.write() as session:
            sweep_id = record_sweep(session, claim, job_id=part_of(claim.params), **_SWEEP)
            layer, config_hash = cell
            kept = record_measurement(
                session, claim, sweep_id=sweep_id, layer_idx=layer, config_hash=config_hash, **_MEASUREMENT
            )
        assert kept == (cell not in self.measured)
        self.measured.setdefault(cell, claim.attempt_id)

    def _finish(self, claim: Claim) -> None:
        if claim.kind == JobKind.SWEEP:
            for cell in _cells(claim.params):
                if cell not in self.measured:
                    self._record(claim, cell)
        with self.database.write() as session:
            finish_attempt(session, claim, {"by": claim.attempt_id, "n_cells": 1, "recorded": 0})
        self.relay.taken.discard(claim.attempt_id)

    def _owns(self, claim: Claim) -> bool:
        with self.database.read() as session:
            attempt = session.get_one(Attempt, claim.attempt_id)
        return attempt.state == AttemptState.RUNNING and attempt.lease_token == claim.token

    def _job_ids(self) -> list[str]:
        with self.database.read() as session:
            return list(session.scalars(select(Job.id).order_by(Job.created_at, Job.id)))

    def _set(self, **values: Any) -> None:
        (column,) = values
        with self.database.write() as session:
            session.execute(update(Attempt).where(getattr(Attempt, column).is_not(None)).values(**values))


def run_schedules(database: Database, examples: int, *, steps: int = 30, chosen_by: int | None = None) -> Counter[str]:
    """Run so many schedules; ``chosen_by`` is the seed that chooses them, None always chooses the same ones."""
    tally: Counter[str] = Counter()
    machine: Any = type("BoundSchedules", (Schedules,), {"database": database, "tally": tally})
    if chosen_by is not None:
        machine = seed(chosen_by)(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=chosen_by is None,
        ),
    )
    return tally


def _cells(params: dict[str, Any]) -> list[Cell]:
    """Of a part, its layer's; of a whole, all."""
    layers = params.get("matrices", {}).get("layers", LAYERS)
    return [(layer, config_hash) for layer in layers for config_hash in HASHES]


def _furnish(session: Session) -> None:
    """A model of two layers, its calibration, and workers."""
    for name in WORKERS:
        device = {"device": "cpu", "device_kind": "cpu", "hostname": "h", "pid": 1}
        session.add(Worker(id=name, name=name, state="up", heartbeat_at=utc_now(), **device))
    matrices = [{"layer_idx": layer, "projection": "q", "expert_idx": -1} for layer in LAYERS]
    session.add(Model(id="mod", name="m", source="m", matrices=matrices))
    session.add(Artefact(id="art", kind="calibration", uri="file", nbytes=1))
    session.flush()
    session.add(Calibration(id="cal", model_id="mod", artefact_id="art", content_hash="c", **_CALIBRATION))
    session.flush()


_CALIBRATION = {
    "n_samples": 1,
    "sample_length": 8,
    "n_tokens": 8,
    "seed": 0,
    "token_hash": "t",
    "text": {"kind": "stdlib"},
    "numerics_version": 1,
    "device_kind": "cpu",
    "seconds": 0.1,
}
_KEY = {"model_id": "mod", "calibration_id": "cal"}
_SWEEP = _KEY | {
    "configs": [{}, {}],
    "config_hashes": list(HASHES),
    "clamped": [],
    "n_cells": len(LAYERS) * len(HASHES),
}
_MEASUREMENT = _KEY | {
    "projection": "q",
    "out_features": 8,
    "in_features": 8,
    "config": {"b_q": 2},
    "b_q": 2,
    "rank": 0,
    "factor_bits_l": 4,
    "factor_bits_r": 4,
    "codebook": "e8",
    "seed": 0,
    "numerics_version": 1,
    "device_kind": "cpu",
    "raw_mse": 0.1,
    "normalized_mse": 0.1,
    "calibration_weighted_error": 0.1,
    "nbytes": 16,
    "bits_per_weight": 2.0,
    "seconds": 0.1,
}
