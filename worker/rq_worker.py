"""RQ's forking worker, with bitbudget's rules for signals, lost horses and a Redis that goes away."""

from __future__ import annotations

import logging
import os
import signal
import time
from types import FrameType
from typing import Any

from redis.exceptions import RedisError
from rq import Worker
from rq.exceptions import StopRequested
from rq.job import Job
from rq.worker import WorkerStatus
from sqlalchemy import select

from results_db.logs import bind
from results_db.queries.log_ids import log_ids
from results_db.queue.lease import give_back, lose_attempt
from results_db.states import AttemptState
from results_db.tables import Attempt
from worker.crash import last_words
from worker.current import CurrentWorker
from worker.database import open_database
from worker.registration import Orders, touch

log = logging.getLogger(__name__)

#: seconds after which a horse whose job was cancelled is killed: its own heartbeat, every five, has had its chance, and
#: with the two between looks it ends within the ten that are promised
_DEAF_AFTER_S = 5.0


class BitbudgetWorker(Worker):
    """One work horse at a time, forked from a parent that has torch imported and has computed nothing."""

    #: longest wait between tries to reach Redis, seconds
    max_connection_wait_time = 5.0
    #: longest wait for a message, seconds: an idle worker hears that it is drained within it
    dequeue_timeout = 5

    def __init__(self, *args: Any, current: CurrentWorker, **kwargs: Any) -> None:
        self.current = current
        #: whether a signal asked this worker to stop
        self.asked_to_stop = False
        #: since when the running attempt is known to be cancelled (time.monotonic)
        self._cancelled_at: float | None = None
        super().__init__(*args, work_horse_killed_handler=self.horse_died, **kwargs)

    # --- the horse's side ---

    def setup_work_horse_signals(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.current.stop.ask_on_sigterm()

    # --- the parent's side ---

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        self.asked_to_stop = True
        super().request_stop(signum, frame)

    def handle_warm_shutdown_request(self) -> None:
        """SIGTERM or Ctrl+C: let the horse finish its experiment and give the attempt back."""
        super().handle_warm_shutdown_request()
        if self.horse_pid:
            self.kill_horse(signal.SIGTERM)

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """A second signal, a second or more later: RQ kills the horse. A third must not end what gives back."""
        try:
            super().request_force_stop(signum, frame)
        except SystemExit:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """RQ's loop. Where a second signal ended it, the attempt of the horse that was killed is given back.

        Here and not where the signal arrives: that may be in the middle of a write of ours, which holds the database.
        """
        try:
            return bool(super().work(*args, **kwargs))
        except SystemExit:
            if not self.is_horse:
                self._give_back()
            raise

    def horse_died(self, job: Job, _pid: int, status: int | None, usage: Any) -> None:
        """The horse ended without recording an end: its attempt is lost, and tried again at once."""
        rss = usage.ru_maxrss * 1024 if usage is not None else None
        if status is not None and os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            why = f"its process was killed by {signal.Signals(number).name}"
            if number == signal.SIGKILL:
                why += " (out of memory, or somebody's kill -9)"
            self._lose(job.id, why, signal=number, peak_rss_bytes=rss)
        elif status is not None:
            code = os.WEXITSTATUS(status)
            self._lose(job.id, f"its process ended with exit code {code}", exit_code=code, peak_rss_bytes=rss)
        else:
            self._lose(job.id, "its process is gone", peak_rss_bytes=rss)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Tell Redis and the database that this worker lives.

        Raises:
            StopRequested: nothing runs here, and somebody wants this worker to end.
        """
        super().heartbeat(timeout, pipeline)
        if self.is_horse:
            return
        orders = self._touch()
        if orders is not None and orders.drain and not self.horse_pid:
            log.info("worker %s is drained", self.name)
            self.asked_to_stop = True
            raise StopRequested
        if self.asked_to_stop and self.get_state() != WorkerStatus.BUSY:
            # RQ's handler raises where the signal finds us, and some library's code may have caught it
            raise StopRequested
        self._end_cancelled(orders)

    def maintain_heartbeats(self, job: Job, execution: Any) -> None:
        """A Redis that is away does not end a job: the lease in the database is what counts."""
        try:
            super().maintain_heartbeats(job, execution)
        except RedisError as error:
            log.warning("Redis does not answer while %s runs: %s", job.id, error)
            self._end_cancelled(self._touch())

    def _end_cancelled(self, orders: Orders | None) -> None:
        """Kill a horse that goes on although its job was cancelled: a long call that holds the interpreter's lock keeps
        its own heartbeat from hearing of it. The attempt then ends as cancelled."""
        if orders is None:  # nobody knows
            return
        if orders.cancelled is None or not self.horse_pid:
            self._cancelled_at = None
        elif self._cancelled_at is None:
            self._cancelled_at = time.monotonic()
        elif time.monotonic() - self._cancelled_at >= _DEAF_AFTER_S:
            log.warning("attempt %s does not hear that it is cancelled: its process is killed", orders.cancelled)
            self.kill_horse(signal.SIGKILL)

    def _touch(self) -> Orders | None:
        """None where the database did not answer."""
        database = open_database(self.current.settings)
        try:
            return touch(database, self.current.id)
        except StopRequested:  # a signal came meanwhile
            raise
        except Exception as error:  # noqa: BLE001 - the row is for people's eyes; the next beat tries again
            log.warning("this worker's heartbeat could not be stored: %s", error)
            return None
        finally:
            database.dispose()  # no connection may cross the next fork

    def _give_back(self) -> None:
        """What this worker ran costs no attempt: its horse was killed because people wanted the worker to end now."""
        database = open_database(self.current.settings)
        mine = select(Attempt).where(Attempt.worker_id == self.current.id, Attempt.state == AttemptState.RUNNING.value)
        try:
            with database.write() as session:
                for attempt in session.scalars(mine).all():
                    if give_back(session, attempt):
                        last_words(self.current.settings.var_dir, attempt.id)  # it said nothing worth keeping
                        with bind(**log_ids(session, attempt.id)):
                            log.warning("told twice to stop: attempt %s is given back unfinished", attempt.id)
        except Exception:
            log.exception("what this worker ran could not be given back: its lease will run out")
        finally:
            database.dispose()

    def _lose(self, attempt_id: str, why: str, **remains: int | None) -> None:
        settings = self.current.settings
        database = open_database(settings)
        try:
            with database.write() as session:
                attempt = session.get(Attempt, attempt_id)
                if attempt is None or attempt.worker_id != self.current.id:
                    # delivered twice: whoever claimed it goes on, whatever became of the horse that did not
                    return
                words = last_words(settings.var_dir, attempt_id)
                if lose_attempt(session, attempt, why, traceback=words, backoff=settings.backoff, remains=remains):
                    with bind(**log_ids(session, attempt_id)):
                        log.warning("attempt %s is lost: %s", attempt_id, why)
        except Exception:
            log.exception("attempt %s could not be put back: its lease will run out", attempt_id)
        finally:
            database.dispose()
