"""The relay: tells RQ of attempts that the database holds as queued, as often as Redis forgets them.

Redis is the doorbell, the database the truth: a message carries an attempt id and nothing else, and delivering it
twice is harmless, because a worker claims the attempt in the database.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from results_db import Database
from results_db.queue.relay import attempts_believed_enqueued, attempts_to_enqueue, mark_enqueued, mark_forgotten

log = logging.getLogger(__name__)

QUEUE = "bitbudget"
RUN_ATTEMPT = "worker.run.run_attempt"
#: RQ must not stop a job by its clock: leases do that by the database's
JOB_TIMEOUT_S = 30 * 24 * 3600
#: what RQ keeps of a finished job; the database has it all
RESULT_TTL_S = 60
_TIMEOUT_S = 5.0


class Relay:
    """Hands queued attempts to RQ. Not thread-safe: the advance loop alone uses ``deliver`` and ``reconcile``."""

    def __init__(self, database: Database, redis_url: str, *, reconcile_every_s: float = 5.0) -> None:
        self.database = database
        self.redis = Redis.from_url(redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        self.queue = Queue(QUEUE, connection=self.redis, serializer=JSONSerializer)
        self.reconcile_every_s = reconcile_every_s
        self._down = False
        self._reconciled_at = float("-inf")

    def step(self) -> int:
        """Deliver what is due and, every few seconds, look for what Redis forgot; the number delivered.

        Redis being away is no error: it is logged once an outage, and everything is delivered when it is back.
        """
        try:
            if self._down:
                self.redis.ping()
            if time.monotonic() - self._reconciled_at >= self.reconcile_every_s:
                self.reconcile()
                self._reconciled_at = time.monotonic()
            delivered = self.deliver()
        except RedisError as error:
            if not self._down:
                log.warning("Redis is away (%s): attempts wait in the database until it is back", error)
            self._down = True
            self._reconciled_at = float("-inf")
            return 0
        if self._down:
            log.info("Redis is back")
            self._down = False
        return delivered

    def deliver(self) -> int:
        """Enqueue every attempt that RQ was never told of."""
        with self.database.read() as session:
            ids = list(attempts_to_enqueue(session))
        if not ids:
            return 0
        told: list[str] = []
        try:
            for attempt_id in ids:
                self._enqueue(attempt_id)
                told.append(attempt_id)
        finally:
            if told:
                with self.database.write() as session:
                    mark_enqueued(session, told)
        return len(told)

    def reconcile(self) -> int:
        """Mark attempts that the database believes enqueued and Redis does not have, so that they are sent again."""
        with self.database.read() as session:
            ids = list(attempts_believed_enqueued(session))
        if not ids:
            return 0
        # the database was read first: what a worker claimed in between is no longer queued, and marking skips it
        forgotten = sorted(set(ids) - self._in_flight())
        if forgotten:
            log.warning(
                "Redis does not have %d attempts that the database holds as queued: sending again", len(forgotten)
            )
            with self.database.write() as session:
                mark_forgotten(session, forgotten)
        return len(forgotten)

    def ping(self) -> str | None:
        """None where Redis answers, else why not."""
        try:
            self.redis.ping()
        except RedisError as error:
            return str(error)
        return None

    def close(self) -> None:
        self.redis.close()

    def _enqueue(self, attempt_id: str) -> None:
        try:
            self._send(attempt_id)
        except DuplicateJobError:
            # RQ looks at the job's hash, which lingers after the job left the queue
            if attempt_id in self._in_flight():
                return
            self._delete_hash(attempt_id)
            self._send(attempt_id)

    def _send(self, attempt_id: str) -> None:
        self.queue.enqueue_call(
            RUN_ATTEMPT,
            args=(attempt_id,),
            job_id=attempt_id,
            unique=True,
            timeout=JOB_TIMEOUT_S,
            result_ttl=RESULT_TTL_S,
            failure_ttl=RESULT_TTL_S,
        )

    def _delete_hash(self, attempt_id: str) -> None:
        try:
            RqJob.fetch(attempt_id, connection=self.redis, serializer=JSONSerializer).delete()
        except (NoSuchJobError, InvalidJobOperation):
            self.redis.delete(RqJob.key_for(attempt_id))

    def _in_flight(self) -> set[str]:
        """Ids that RQ has queued, on their way to a worker, or started.

        Read with plain commands: RQ's own registry readers move jobs to failed while they read.
        """
        pipe = self.redis.pipeline()
        pipe.lrange(self.queue.key, 0, -1)
        pipe.lrange(self.queue.intermediate_queue_key, 0, -1)
        # scored by the time until which RQ trusts the worker's heartbeat
        pipe.zrangebyscore(self.queue.started_job_registry.key, time.time(), "+inf")
        queued, between, started = pipe.execute()
        # a member of the started registry is JOB_ID:EXECUTION_ID
        return {*_texts(queued), *_texts(between), *(text.split(":")[0] for text in _texts(started))}


def _texts(members: Iterable[bytes]) -> list[str]:
    return [member.decode() for member in members]
