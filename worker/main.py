"""Entry of the worker: device preflight, registration, imports, then RQ's loop.

Exit codes: 0 stopped as asked; 2 the device is absent or taken; 3 the database or the artefact store cannot be used.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import socket
import time
from importlib import import_module

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue
from rq.serializers import JSONSerializer
from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError

from results_db import Database
from results_db.logs import configure_logs
from results_db.masking import remember_secrets
from results_db.setting_docs import tell_settings
from results_db.settings import Settings
from worker.artefacts import ArtefactStore
from worker.card_lock import MACHINE_LOCKS
from worker.crash import forget_old
from worker.current import CurrentWorker, set_current
from worker.database import open_database
from worker.device import Device, own_device
from worker.errors import DeviceUnavailable, NotReady, StoreNotUsable
from worker.registration import bury_the_dead, register, touch
from worker.remote import check_store, is_remote
from worker.rq_worker import BitbudgetWorker
from worker.stop import StopRequest

log = logging.getLogger(__name__)

#: one queue: BLMOVE, which loses nothing between pop and start, takes exactly one
QUEUE = "bitbudget"
_WORKER_TTL_S = 30
#: how often the parent looks at the horse, and hears of a cancel that the horse itself may be too busy to hear
_MONITORING_S = 2
_MAINTENANCE_S = 15
#: how long a database without a schema is waited for: the server migrates it
_PATIENCE_S = 60.0
_RETRY_S = 2.0
#: model families whose code takes seconds to import
_FAMILIES = ("qwen2", "llama", "mistral")


def main(argv: list[str] | None = None) -> int:
    """Run a worker until it is told to stop; the exit code."""
    arguments = _parser().parse_args(argv)
    _prepare_environment()
    settings = Settings(**({"device": arguments.device} if arguments.device else {}))
    configure_logs(settings.log_format, settings.log_level)
    remember_secrets((settings.database_url, settings.redis_url))
    tell_settings(settings, os.environ)
    name = arguments.name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        if is_remote(settings.artefacts_url):
            check_store(settings.artefacts_url)
        ArtefactStore.clean(settings.var_dir, settings.keep_work_days)
        forget_old(settings.var_dir, settings.keep_work_days)
        with own_device(settings.device, [MACHINE_LOCKS, settings.var_dir / "locks"]) as device:
            _work(settings, device, name, burst=arguments.burst)
    except DeviceUnavailable as error:
        log.error("%s", error)
        return 2
    except (NotReady, StoreNotUsable) as error:
        log.error("%s", error)
        return 3
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worker",
        description="Run jobs of the queue. Settings come from BITBUDGET_* variables.",
        epilog="Example: BITBUDGET_DEVICE='RTX 3090' python -m worker",
    )
    parser.add_argument("--device", help='"cpu", a part of a GPU\'s name, its UUID, or cuda:N (BITBUDGET_DEVICE)')
    parser.add_argument("--name", help="unique name; default: host, pid and a random part")
    parser.add_argument("--burst", action="store_true", help="stop when the queue is empty")
    return parser


def _prepare_environment() -> None:
    """What must be set before torch is imported."""
    # spinning OpenMP threads beside another busy process made a job six times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch then asks NVML, not CUDA, whether a GPU is there: the parent must not create a CUDA context
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _preload() -> None:
    """Import what jobs import, once, so that no job pays for it. Nothing is computed: a parent that ran a parallel
    region before the fork leaves the horse with a pool of threads that do not exist."""
    import numba
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    import worker.run

    for family in _FAMILIES:
        import_module(f"transformers.models.{family}.modeling_{family}")
    # numba starts no thread. Its kernels are compiled, or read from the cache, by the horse that first calls them
    import_module("compress_core.codebooks.viterbi.cpu")
    del AutoConfig, AutoModelForCausalLM, AutoTokenizer, worker
    versions = (torch.__version__, transformers.__version__, numba.__version__)
    log.info("torch %s, transformers %s and numba %s are loaded", *versions)


def _work(settings: Settings, device: Device, name: str, *, burst: bool) -> None:
    database = open_database(settings)
    try:
        _wait_for_schema(database)
        bury_the_dead(database, settings)
        worker_id = register(database, name, device)
    finally:
        database.dispose()
    current = CurrentWorker(worker_id, os.getpid(), settings, device, StopRequest())
    set_current(current)
    _preload()
    try:
        _serve(current, name, burst=burst)
    finally:
        touch(database, worker_id, state="down")
        database.dispose()
        log.info("worker %s has stopped", name)


def _serve(current: CurrentWorker, name: str, *, burst: bool) -> None:
    """RQ's loop, begun again whenever it ends without having been asked to: Redis went away, for example."""
    number = 0
    while True:
        # RQ refuses a name that it has seen lately
        worker = None
        try:
            worker = _make_rq_worker(current, f"{name}.{number}" if number else name)
            log.info("worker %s listens on queue %s, device %s", worker.name, QUEUE, current.device.torch_name)
            worker.work(burst=burst, logging_level="WARNING")
        except RedisError as error:
            log.warning("Redis does not answer (%s): trying again", error)
        if burst or (worker is not None and worker.asked_to_stop):
            return
        number += 1
        time.sleep(_RETRY_S)


def _make_rq_worker(current: CurrentWorker, name: str) -> BitbudgetWorker:
    connection = redis.Redis.from_url(
        current.settings.redis_url,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries=5),
        retry_on_error=[redis.exceptions.ConnectionError],
    )
    queue = Queue(QUEUE, connection=connection, serializer=JSONSerializer)
    return BitbudgetWorker(
        [queue],
        name=name,
        connection=connection,
        serializer=JSONSerializer,
        worker_ttl=_WORKER_TTL_S,
        job_monitoring_interval=_MONITORING_S,
        maintenance_interval=_MAINTENANCE_S,
        default_result_ttl=0,
        log_job_description=False,
        current=current,
    )


def _wait_for_schema(database: Database) -> None:
    """The server migrates; a worker that starts beside it waits.

    Raises:
        NotReady: no usable schema after a minute.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            if inspect(database.engine).has_table("workers"):
                return
            why = "it has no tables: start the server, which creates them"
        except DBAPIError as error:
            why = str(error.orig)
        if time.monotonic() > deadline:
            url = database.url.render_as_string(hide_password=True)
            raise NotReady(f"the database {url} cannot be used: {why}")
        time.sleep(0.5)
