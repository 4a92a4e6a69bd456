"""The application on real databases, a tiny real checkpoint, and a simulated worker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.numpy import save_file
from sqlalchemy import make_url

from results_db.settings import Settings
from server.app import create_app
from tests.server.simulated import SimulatedWorker
from tests.serving import serving

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS, VOCAB = 32, 4, 2, 48, 3, 64


def write_checkpoint(folder: Path, *, layers: int = LAYERS, seed: int = 0) -> Path:
    """A Qwen2-shaped checkpoint with random weights."""
    rng = np.random.default_rng(seed)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"q": (HIDDEN, HIDDEN), "k": (kv, HIDDEN), "v": (kv, HIDDEN), "o": (HIDDEN, HIDDEN)}
    mlp = {"gate": (FFN, HIDDEN), "up": (FFN, HIDDEN), "down": (HIDDEN, FFN)}
    tensors = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(layers):
        prefix = f"model.layers.{i}"
        tensors |= {f"{prefix}.self_attn.{name}_proj.weight": shape for name, shape in shapes.items()}
        tensors |= {f"{prefix}.mlp.{name}_proj.weight": shape for name, shape in mlp.items()}
        tensors |= {f"{prefix}.{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
    folder.mkdir(parents=True)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    save_file(arrays, str(folder / "model.safetensors"))
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def database_url(database_url: str, request: pytest.FixtureRequest) -> str:
    """URL of a fresh database; tests of ``measured_model`` begin with a copy of one that was filled once."""
    if "measured_model" in request.fixturenames:
        request.getfixturevalue("measured").copy_to(database_url)
    return database_url


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if "measured_model" in request.fixturenames:
        return request.getfixturevalue("measured").checkpoint
    return write_checkpoint(tmp_path / "models" / "tiny")


@pytest.fixture
def settings(database_url: str, checkpoint: Path, tmp_path: Path) -> Settings:
    """Redis is nowhere: tests that want one replace the URL."""
    (tmp_path / "models").mkdir(exist_ok=True)
    return make_settings(database_url, tmp_path, *{tmp_path / "models", checkpoint.parent})


def make_settings(database_url: str, folder: Path, *roots: Path) -> Settings:
    return Settings(
        database_url=database_url,
        redis_url=f"unix://{folder}/none.sock",
        var_dir=folder / "var",
        model_roots=roots,
    )


@pytest.fixture
def app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The application; its advance loop is turned by hand."""
    # the database is a copy of one that was upgraded: to make every view of it anew takes 0.1 s on PostgreSQL
    monkeypatch.setattr("server.app.upgrade", lambda database: None)
    return create_app(settings, run_loop=False, page=False)


@pytest.fixture
def fresh_client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def client(fresh_client: TestClient) -> TestClient:
    """Modules whose tests may share an application say so with a ``client`` of their own: ``standing`` or
    ``standing_measured``. What must be alone there asks for ``fresh_client``."""
    return fresh_client


@pytest.fixture
def live(app: FastAPI) -> Iterator[str]:
    """Address of the application behind a real socket."""
    with serving(app, timeout_graceful_shutdown=1) as address:
        yield address


@pytest.fixture
def model(client: TestClient, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The tiny model, registered."""
    known = client.get("/api/v1/models").json()["items"]
    return dict(known[0]) if known else register(client, request.getfixturevalue("checkpoint"))


def register(client: TestClient, checkpoint: Path) -> dict[str, Any]:
    answer = client.post("/api/v1/models", json={"source": str(checkpoint)})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


@pytest.fixture
def make_worker(app: FastAPI, client: TestClient) -> Callable[..., SimulatedWorker]:
    """A simulated worker on the database of the client's application."""

    def make(**options: Any) -> SimulatedWorker:
        return SimulatedWorker(app.state.database, **options)

    return make


@pytest.fixture
def run_to_end(app: FastAPI, make_worker: Callable[..., SimulatedWorker]) -> Callable[..., None]:
    """Turn the loop and let the worker run until neither has anything to do."""
    return lambda worker=None: turn_to_end(app, worker or make_worker())


def turn_to_end(app: FastAPI, worker: SimulatedWorker) -> None:
    for _ in range(500):
        moved = app.state.loop.turn()
        assert app.state.loop.last_error is None
        if not worker.run_all() and not moved:
            return
    raise AssertionError("still not idle after 500 turns")


@pytest.fixture
def study_config(checkpoint: Path) -> dict[str, Any]:
    """A small study with every phase."""
    return {
        "name": "small",
        "model": {"source": str(checkpoint)},
        "calibration": {"samples": 8, "length": 64},
        "sensitivity": {"samples": 8, "length": 64},
        "grid": {"codebook": "e8", "b_q": [2, 3, 4], "rank": [0, 4, 12]},
        "phase0": {
            "uniform": {"b_q": 2, "rank": 8},
            "high": {"b_q": 3, "rank": 16},
            "low": {"b_q": 2, "rank": 0},
        },
        "budgets": [{"uniform": {"b_q": 3, "rank": 4}}],
        "validation": {"uniforms": 3, "random": 4, "windows": 8, "length": 64},
        "evaluation": {"length": 64},
        "on_no_go": "continue",
    }


class Measured:
    """Databases with a measured model, one of each kind, filled when first asked for and copied from then on."""

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self.folder = folder
        self.request = request
        self.checkpoint = write_checkpoint(folder / "models" / "tiny")
        self._filled: set[str] = set()

    def copy_to(self, database_url: str) -> None:
        """Replace a database that nobody has opened yet."""
        url = make_url(database_url)
        if url.get_backend_name() == "sqlite":
            template = self.folder / "measured.db"
            if "sqlite" not in self._filled:
                shutil.copy(self.request.getfixturevalue("sqlite_template"), template)
                self._fill("sqlite", f"sqlite:///{template}")
            shutil.copy(template, str(url.database))
            return
        run = self.request.getfixturevalue("postgres_run")
        if "postgresql" not in self._filled:
            run(f"CREATE DATABASE measured TEMPLATE {self.request.getfixturevalue('postgres_template')}")
            self._fill("postgresql", self.request.getfixturevalue("postgres_uri")("measured"))
        run(f"DROP DATABASE {url.database} WITH (FORCE)")
        run(f"CREATE DATABASE {url.database} TEMPLATE measured")

    def _fill(self, kind: str, url: str) -> None:
        app = create_app(make_settings(url, self.folder, self.checkpoint.parent), run_loop=False, page=False)
        with TestClient(app, base_url="http://localhost") as client:
            measure(client, register(client, self.checkpoint)["id"], partial(turn_to_end, app))
            if kind == "sqlite":
                with app.state.database.engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        self._filled.add(kind)


def measure(client: TestClient, model_id: str, run: Callable[[SimulatedWorker], None]) -> None:
    """A calibration, sensitivities and a sweep of a model."""
    worker = SimulatedWorker(client.app.state.database)  # type: ignore[attr-defined]
    ask = {"model_id": model_id}
    configs = [{"b_q": b, "rank": r} for b in (2, 3, 4) for r in (0, 4, 12)]
    assert client.post("/api/v1/calibrations", json=ask).status_code == 202
    run(worker)
    assert client.post("/api/v1/sensitivities", json=ask | {"anchors": [configs[0], configs[-1]]}).status_code == 202
    configs += [{"b_q": b, "codebook": "rtn"} for b in (2, 3, 4)]
    assert client.post("/api/v1/sweeps", json=ask | {"configs": configs}).status_code == 202
    run(worker)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Measured:
    return Measured(tmp_path_factory.mktemp("measured"), request)


@pytest.fixture(scope="session")
def standing_clients(
    measured: Measured,
    new_database: Callable[[str, Path], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., TestClient]]:
    """Applications that all tests of a process share: one a database, and one with the measured model."""
    with ExitStack() as stack:

        @cache
        def client(backend: str, *, with_measured: bool) -> TestClient:
            folder = tmp_path_factory.mktemp("standing")
            url = new_database(backend, folder)
            if with_measured:
                measured.copy_to(url)
            app = create_app(make_settings(url, folder, measured.checkpoint.parent), run_loop=False, page=False)
            opened = stack.enter_context(TestClient(app, base_url="http://localhost"))
            if not with_measured:
                register(opened, measured.checkpoint)
            return opened

        yield client


@pytest.fixture
def standing(database_backend: str, standing_clients: Callable[..., TestClient]) -> TestClient:
    """An application with the tiny model: for tests that change nothing, or that do not mind what others changed."""
    return standing_clients(database_backend, with_measured=False)


@pytest.fixture
def standing_measured(database_backend: str, standing_clients: Callable[..., TestClient]) -> TestClient:
    """The same with the measured model. Further allocations of it disturb nobody; measurements, sensitivities and
    validations would."""
    return standing_clients(database_backend, with_measured=True)


@pytest.fixture
def measured_model(client: TestClient) -> dict[str, Any]:
    """The tiny model with a calibration, sensitivities and a sweep: {model_id, calibration_id}."""
    (calibration,) = client.get("/api/v1/calibrations").json()["items"]
    return {"model_id": calibration["model_id"], "calibration_id": calibration["id"]}
