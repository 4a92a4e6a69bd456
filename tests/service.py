"""A real stack without HTTP: database, Valkey, the server's relay and reaper, and workers as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from sqlalchemy import func, select
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from compress_core.checkpoint import open_checkpoint
from compress_core.config import CompressionConfig
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.nbytes import predicted_nbytes
from compress_core.pack.layout import fixed_bytes
from results_db import Database
from results_db.ids import new_id
from results_db.params import SweepParams
from results_db.queries.parts import parts_of
from results_db.queue.backoff import Backoff
from results_db.queue.lease import reap_expired
from results_db.queue.promote import promote_waiting
from results_db.queue.submit import submit_job
from results_db.states import TERMINAL, JobKind, JobState
from results_db.tables import Allocation, AllocationItem, Attempt, Job, JobEvent, Measurement, Model, Sweep
from server.relay import Relay
from server.sweeps.service import submit_sweep

torch.set_num_threads(1)

#: seconds; generous, since every wait ends as soon as its state is there
PATIENCE_S = 90.0
#: seconds; long enough that on a machine with more work than cores only those lose it who are meant to
LEASE_S = 6.0
HEARTBEAT_S = 0.2
BACKOFF = Backoff(base_s=0.1)


def write_model(path: Path, *, layers: int) -> Path:
    """A random Qwen2 with a byte-level tokenizer."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=257,
        hidden_size=48,
        intermediate_size=88,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=256,
        pad_token_id=None,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    Qwen2ForCausalLM(config).save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)} | {"<|endoftext|>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(path)
    return path


def _matrix(spec: MatrixSpec) -> dict[str, Any]:
    key = {"layer_idx": spec.key.layer_idx, "projection": spec.key.projection, "expert_idx": spec.key.expert_idx}
    return key | {"out_features": spec.out_features, "in_features": spec.in_features}


class Service:
    """What a server's loops do, called by hand, and the workers that a test starts and kills."""

    def __init__(self, database_url: str, redis_url: str, folder: Path, repo: Path, roots: list[Path]) -> None:
        self.database = Database(database_url)
        self.relay = Relay(self.database, redis_url, unclaimed_s=LEASE_S)
        self.repo = repo
        self.folder = folder
        self.environment = os.environ | {
            "BITBUDGET_DATABASE_URL": database_url,
            "BITBUDGET_REDIS_URL": redis_url,
            "BITBUDGET_VAR_DIR": str(folder),
            "BITBUDGET_MODEL_ROOTS": os.pathsep.join(map(str, roots)),
            "BITBUDGET_LEASE_S": str(LEASE_S),
            "BITBUDGET_HEARTBEAT_S": str(HEARTBEAT_S),
            "BITBUDGET_RETRY_BASE_S": str(BACKOFF.base_s),
            "OMP_NUM_THREADS": "1",
            # what is fetched is what a test has put there
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_HUB_OFFLINE": "1",
        }
        self.workers: list[subprocess.Popen[bytes]] = []

    # --- rows ---

    def add_model(self, path: Path) -> str:
        """Register a checkpoint as the server would; its id."""
        checkpoint = open_checkpoint(path)
        model = Model(
            id=new_id("mod"),
            name=path.name,
            source=str(path),
            local_path=str(path),
            fingerprint=checkpoint.fingerprint,
            n_layers=checkpoint.n_layers,
            matrices=[_matrix(spec) for spec in checkpoint.matrices()],
            fixed_bytes=fixed_bytes(checkpoint),
        )
        with self.database.write() as session:
            known = session.scalar(select(Model.id).where(Model.fingerprint == model.fingerprint))
            if known is None:
                session.add(model)
        return known or model.id

    def allocate(
        self, model_id: str, calibration_id: str, path: Path, config_of: Callable[[MatrixKey], CompressionConfig]
    ) -> str:
        """An allocation, as the server would store it; its id."""
        checkpoint = open_checkpoint(path)
        configs = {spec.key: config_of(spec.key) for spec in checkpoint.matrices()}
        sizes = {
            spec.key: predicted_nbytes(configs[spec.key], spec.out_features, spec.in_features)
            for spec in checkpoint.matrices()
        }
        row = Allocation(
            id=new_id("alloc"),
            model_id=model_id,
            calibration_id=calibration_id,
            name="given",
            kind="manual",
            scope="decoder",
            matrix_bytes=sum(sizes.values()),
            fixed_bytes=fixed_bytes(checkpoint),
            total_bytes=sum(sizes.values()),
            bits_per_weight=4.0,
            n_distinct_configs=len(set(configs.values())),
            content_hash=uuid4().hex,
            overrides_yaml="",
            seconds=0.0,
        )
        with self.database.write() as session:
            session.add(row)
            session.flush()
            for key, config in configs.items():
                session.add(
                    AllocationItem(
                        allocation_id=row.id,
                        layer_idx=key.layer_idx,
                        projection=key.projection,
                        config_hash=config.config_hash,
                        config=config.to_dict(),
                        b_q=config.b_q,
                        rank=config.rank,
                        nbytes=sizes[key],
                    )
                )
        return row.id

    def submit(self, kind: JobKind, params: dict[str, Any], **options: Any) -> str:
        with self.database.write() as session:
            return submit_job(session, kind, params, **options).id

    def submit_sweep(self, **params: Any) -> str:
        """A sweep as the server submits it: split into its layers. The id of the whole."""
        with self.database.write() as session:
            return submit_sweep(session, SweepParams(**params)).id

    def parts(self, job_id: str) -> list[Job]:
        """The jobs of a split sweep's layers."""
        with self.database.read() as session:
            return parts_of(session, session.get_one(Job, job_id))

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return session.get_one(Job, job_id)

    def attempts(self, job_id: str) -> list[Attempt]:
        with self.database.read() as session:
            return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)))

    def events(self, job_id: str) -> list[str]:
        with self.database.read() as session:
            return list(session.scalars(select(JobEvent.kind).where(JobEvent.job_id == job_id).order_by(JobEvent.id)))

    def measured(self, job_id: str) -> int:
        """Measurements recorded under a sweep job's sweep."""
        with self.database.read() as session:
            query = select(func.count()).select_from(Measurement).join(Sweep, Sweep.id == Measurement.sweep_id)
            return int(session.scalars(query.where(Sweep.job_id == job_id)).one())

    def calibrate(self, model_id: str, text: Path) -> str:
        """The id of a calibration, made by a worker."""
        params = {"model_id": model_id, "text": {"kind": "file", "path": str(text)}}
        job = self.finish(self.submit(JobKind.CALIBRATE, params | {"windows": {"length": 32, "count": 16}}))
        assert job.state == JobState.SUCCEEDED, job.error
        return str(job.result["calibration_id"]) if job.result else ""

    # --- loops ---

    def step(self) -> None:
        """One turn of the server's loops."""
        with self.database.write() as session:
            reap_expired(session, backoff=BACKOFF)
            promote_waiting(session)
        self.relay.step()

    def wait(self, happened: Callable[[], Any], what: str) -> Any:
        """Turn the loops until something is true."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.step()
            if value := happened():
                return value
            time.sleep(0.05)
        raise AssertionError(f"waited {PATIENCE_S} s in vain for: {what}\n{self.logs(6000)}")

    def finish(self, job_id: str) -> Job:
        """Wait until a job has ended."""
        self.wait(lambda: JobState(self.job(job_id).state) in TERMINAL, f"the end of {job_id}")
        return self.job(job_id)

    def reach(self, job_id: str, state: JobState) -> None:
        self.wait(lambda: self.job(job_id).state == state, f"{job_id} {state.value}")

    # --- workers ---

    def start_worker(self, *, program: str = "worker", **environment: str) -> subprocess.Popen[bytes]:
        """A new worker process; ``program`` is the module that it runs."""
        log = (self.folder / f"worker-{len(self.workers)}.log").open("wb")
        worker = subprocess.Popen(
            [sys.executable, "-m", program],
            cwd=self.repo,
            env=self.environment | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self.workers.append(worker)
        return worker

    def worker(self) -> subprocess.Popen[bytes]:
        """A live worker: the last one, or a new one."""
        if self.workers and self.workers[-1].poll() is None:
            return self.workers[-1]
        return self.start_worker()

    def horse(self, worker: subprocess.Popen[bytes]) -> int:
        """The pid of the work horse that a worker has forked."""
        return int(Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()[0])

    def logs(self, end: int = 0) -> str:
        """What the workers have said; ``end``: only so many characters of each."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-end:]}" for path in self.folder.glob("worker-*.log"))

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGKILL)
            worker.wait()
        self.relay.close()
        self.database.dispose()
