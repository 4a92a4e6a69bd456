"""The relay: keeps RQ's list equal to what the database wants done next, as often as Redis forgets it.

Redis is the doorbell, the database the truth: a message carries an attempt id and nothing else, and delivering it
twice is harmless, because a worker claims the attempt in the database. At every step the list is compared with the
most urgent attempts that are due: what is missing is sent, what must wait (the queue is paused, a job was cancelled) is
taken back, and what stands in another order than the database's is put right. So a job whose priority was raised goes
before everything that was handed over earlier, and a flushed Redis is full again at the next step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from datetime import datetime

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, WatchError
from redis.retry import Retry
from rq import Queue
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from results_db import Database
from results_db.clock import utc_now
from results_db.queue.delivery import Doorman
from results_db.queue.relay import due_attempts, handed_over, mark_enqueued, mark_taken_back

log = logging.getLogger(__name__)

QUEUE = "bitbudget"
RUN_ATTEMPT = "worker.run.run_attempt"
#: attempts that Redis is told of at once: more than all workers take between two steps
WINDOW = 100
#: RQ must not stop a job by its clock: leases do that by the database's
JOB_TIMEOUT_S = 30 * 24 * 3600
#: what RQ keeps of a finished job; the database has it all
RESULT_TTL_S = 60
#: one that says nothing for so long is away: the next step asks again, and the loop's other parts must not wait
_TIMEOUT_S = 1.0
#: tries to put the list in order while workers take from it; the next step goes on
_MOST_TRIES = 5


class Relay:
    """Hands due attempts to RQ. Not thread-safe: the advance loop alone calls ``step``.

    Args:
        unclaimed_s: seconds after which an attempt that a worker took from the list and did not claim is sent again.
        window: attempts that Redis is told of at once.
        clock: seconds; it must never go back.
    """

    def __init__(
        self,
        database: Database,
        redis_url: str,
        *,
        unclaimed_s: float = 15.0,
        window: int = WINDOW,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.database = database
        # once more where a connection of the pool is gone, not where nobody answers: each try waits for the timeout
        retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        self.redis = Redis.from_url(
            redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=retry
        )
        self.queue = Queue(QUEUE, connection=self.redis, serializer=JSONSerializer)
        #: when Redis last answered a step of this relay
        self.last_contact_at: datetime | None = None
        self._doorman = Doorman(unclaimed_s)
        self._clock = clock
        self._window = window
        self._down = False

    def step(self) -> int:
        """Make the list what the database wants it to be; the number of attempts sent.

        Redis being away is no error: it is logged once an outage, and everything is delivered when it is back.
        """
        try:
            sent = self._follow()
        except RedisError as error:
            if not self._down:
                log.warning("Redis is away (%s): attempts wait in the database until it is back", error)
            self._down = True
            return 0
        self.last_contact_at = utc_now()
        if self._down:
            log.info("Redis is back")
            self._down = False
        return sent

    def ping(self) -> str | None:
        """None where Redis answers, else why not."""
        try:
            self.redis.ping()
        except RedisError as error:
            return str(error)
        return None

    def close(self) -> None:
        self.redis.close()

    def _follow(self) -> int:
        # the database is read first: what a worker claims in between is sent once too often, which is harmless
        with self.database.read() as session:
            due = list(due_attempts(session, self._window))
            told = set(handed_over(session))
        listed, taken = self._look()
        delivery = self._doorman.plan(due, listed, taken, self._clock())
        again = told.intersection(delivery.send)
        if again:
            log.warning("Redis does not have %d attempts that it was told of: sending again", len(again))
        sent: list[str] = []
        try:
            for attempt_id in delivery.send:
                self._enqueue(attempt_id)
                sent.append(attempt_id)
            if (*listed, *sent) != delivery.order:
                self._reorder(delivery.order)
        finally:
            there = {*listed, *sent}.intersection(delivery.order)
            self._remember(there - told, told - set(delivery.order) - taken)
        return len(sent)

    def _remember(self, there: set[str], taken_back: set[str]) -> None:
        if there or taken_back:
            with self.database.write() as session:
                mark_enqueued(session, there)
                mark_taken_back(session, taken_back)

    def _look(self) -> tuple[list[str], set[str]]:
        """What the list holds, next first, and what workers have taken from it, started or not.

        Read with plain commands: RQ's own registry readers move jobs to failed while they read.
        """
        pipe = self.redis.pipeline()
        pipe.lrange(self.queue.key, 0, -1)
        pipe.lrange(self.queue.intermediate_queue_key, 0, -1)
        pipe.zrange(self.queue.started_job_registry.key, 0, -1)
        queued, between, started = pipe.execute()
        # a member of the started registry is JOB_ID:EXECUTION_ID
        return _texts(queued), {*_texts(between), *(text.split(":")[0] for text in _texts(started))}

    def _reorder(self, order: tuple[str, ...]) -> None:
        """Put the list into this order and drop what is not in it. What workers take meanwhile stays taken."""
        for _ in range(_MOST_TRIES):
            with self.redis.pipeline() as pipe:
                pipe.watch(self.queue.key)
                # at once, and not at execute(): the key is watched
                there = _texts(pipe.lrange(self.queue.key, 0, -1))  # type: ignore[arg-type]
                wanted = [id_ for id_ in order if id_ in set(there)]
                pipe.multi()
                pipe.delete(self.queue.key)
                if wanted:
                    pipe.rpush(self.queue.key, *wanted)
                try:
                    pipe.execute()
                except WatchError:
                    continue
                return
        log.info("workers take from the list faster than it is put in order: the next step goes on")

    def _enqueue(self, attempt_id: str) -> None:
        try:
            self._send(attempt_id)
        except DuplicateJobError:
            # RQ looks at the job's hash, which lingers after the job left the queue
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


def _texts(members: Iterable[bytes]) -> list[str]:
    return [member.decode() for member in members]
