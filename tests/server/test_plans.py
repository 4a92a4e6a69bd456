"""Plans and probes over HTTP: what is counted is what the study runs, times come from where they should."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from compress_core.plan import Rates
from compress_core.plan.rates import TermKey
from compress_core.version import NUMERICS_VERSION
from results_db.ids import new_id
from results_db.tables import Job, Measurement, Model, Study, Throughput
from server.plans import machine

Config = dict[str, Any]
CONFIGS = Path(__file__).resolve().parents[2] / "configs"

pytestmark = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)

RATES = Rates(
    "cpu",
    "Test Processor",
    "measured",
    product=1e10,
    forward=1e10,
    terms={
        TermKey("input"): {"fixed": 0.1},
        TermKey("matrix"): {"fixed": 0.01},
        TermKey("measure"): {"fixed": 0.01},
        TermKey("rtn"): {"fixed": 0.001},
        TermKey("feedback", "e8"): {"fixed": 0.1},
        **{TermKey("start", "e8", b_q): {"fixed": 1.0} for b_q in (2, 3, 4)},
        **{TermKey("rank", "e8", b_q): {"fixed": 0.5} for b_q in (2, 3, 4)},
    },
    busy=0.5,
    memory=10**12,
)


@pytest.fixture
def add_probe(app: FastAPI, client: TestClient) -> Callable[..., str]:
    """A probe's row, as a worker would have written it."""

    def add(rates: Rates = RATES, **columns: Any) -> str:
        job = client.post("/api/v1/probes", json={}).json()
        client.post(f"/api/v1/jobs/{job['id']}/cancel")
        row = Throughput(
            **{
                "id": new_id("thr"),
                "job_id": job["id"],
                "hostname": socket.gethostname(),
                "device_kind": rates.device_kind,
                "device_name": rates.device_name,
                "threads": rates.threads,
                "rates": rates.to_dict(),
                "numerics_version": NUMERICS_VERSION,
                "seconds": 1.0,
            }
            | columns
        )
        with app.state.database.write() as session:
            session.add(row)
            return row.id

    return add


def plan(client: TestClient, config: Config, device: str | None = None) -> dict[str, Any]:
    answer = client.post("/api/v1/plans", json={"config": config, "device": device})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["step"]: step for step in found["steps"]}


def written(name: str) -> Config:
    config: Config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return config


def test_a_plan_counts_the_jobs_that_the_study_then_has(client: TestClient, study_config: Config) -> None:
    found = plan(client, study_config)
    study = client.post("/api/v1/studies", json={"config": study_config}).json()
    kinds = [job["kind"] for job in study["jobs"]]
    steps = rows(found)
    for kind in ("calibrate", "sensitivity", "sweep", "validate", "compress", "evaluate"):
        assert steps[kind]["jobs"] == kinds.count(kind), kind
    assert steps["fit, allocate, gate"]["jobs"] == sum(kind in ("fit", "allocate", "gate") for kind in kinds)
    assert found["totals"]["jobs"] == len(kinds)
    assert steps["calibrate"]["count"] == 8 * 64
    assert steps["sensitivity"]["count"] == found["model"]["n_matrices"] * 2
    assert found["totals"]["grid_cells"] == 21 * 9
    assert found["totals"]["cells"] == 21 * (9 + 3)


def test_what_may_not_be_needed_is_counted_apart(
    client: TestClient, study_config: Config, add_probe: Callable[..., str]
) -> None:
    add_probe()
    found = plan(client, study_config)
    # 3 uniform configs; then uniform, optimal, rank 0, manual and 4 random ones; a second optimum's check is not needed
    assert rows(found)["validate"]["count"] == 3 + 4 + 4
    assert rows(found)["sensitivity"]["count"] == found["model"]["n_matrices"] * 2
    (note,) = [note for note in found["notes"] if "measured again" in note]
    assert note.startswith("not counted: where predicted KL turns out not to hold")
    without = plan(client, study_config | {"validation": {"enabled": False}})
    assert "validate" not in rows(without)
    assert without["totals"]["seconds"] < found["totals"]["seconds"]


def test_a_plan_submits_and_registers_nothing(app: FastAPI, client: TestClient, study_config: Config) -> None:
    plan(client, study_config)
    with app.state.database.read() as session:
        assert [session.query(table).count() for table in (Job, Model, Study)] == [0, 0, 0]


def test_without_a_probe_there_are_bytes_but_no_times(client: TestClient, study_config: Config) -> None:
    found = plan(client, study_config)
    assert found["totals"]["seconds"] is None
    assert found["totals"]["memory"] > 0
    assert found["device"]["source"] == "unknown"
    assert found["fits"] is True
    assert "--measure" in found["notes"][-1]


def test_times_come_from_the_probe_and_its_load(
    client: TestClient, study_config: Config, add_probe: Callable[..., str]
) -> None:
    add_probe()
    found = plan(client, study_config)
    # 21 matrices: 3 starts, 6 ranks, 13 times measuring, one rotation, 3 of round-to-nearest; 4 inputs in 3 layers
    idle = 21 * (3 * 1.0 + 6 * 0.5 + 13 * 0.01 + 0.01 + 3 * 0.001) + 12 * 0.2
    sweep = rows(found)["sweep"]
    assert sweep["seconds"] == pytest.approx(2 * idle, rel=1e-3)
    totals = found["totals"]
    assert totals["seconds"] == pytest.approx(2 * totals["idle_seconds"])
    assert totals["low_seconds"] < totals["seconds"] < totals["high_seconds"]
    assert sum(step["share"] for step in found["steps"]) == pytest.approx(1)
    assert found["device"] == {
        "name": "Test Processor", "kind": "cpu", "source": "measured", "uncertainty": 1.3, "busy": 0.5,
        "memory": 10**12, "device_memory": None,
    }  # fmt: skip
    assert any("50%" in note for note in found["notes"])


def test_an_unmeasured_codebook_is_named_and_the_probe_asks_for_it(
    client: TestClient, study_config: Config, add_probe: Callable[..., str]
) -> None:
    add_probe()
    config = study_config | {"grid": {"codebook": "trellis", "b_q": [2], "rank": [4]}}
    found = plan(client, config)
    assert rows(found)["sweep"]["seconds"] is None
    assert {step["share"] for step in found["steps"]} == {None}
    assert any("trellis at 2 bits" in note for note in found["notes"])
    assert {fields["codebook"] for fields in found["probe"]["configs"]} == {"trellis", "rtn"}
    answer = client.post("/api/v1/probes", json=found["probe"])
    assert answer.status_code == 202
    assert answer.json()["kind"] == "probe"
    # an older probe of the same device fills in
    add_probe(replace(RATES, terms={TermKey(k, "trellis", 2, 1024): {"fixed": 1.0} for k in ("feedback", "start")}
                      | {TermKey("feedback", "trellis"): {}, TermKey("rank", "trellis", 2, 1024): {}}))  # fmt: skip
    assert rows(plan(client, config))["sweep"]["seconds"] is not None


def test_what_the_database_measured_beats_the_probe(
    app: FastAPI,
    client: TestClient,
    study_config: Config,
    add_probe: Callable[..., str],
    run_to_end: Callable[..., None],
) -> None:
    add_probe()
    measured = study_config | {"phases": [1, 3], "validation": {"enabled": False}}
    assert client.post("/api/v1/studies", json={"config": measured}).status_code == 202
    run_to_end()
    with app.state.database.write() as session:
        session.execute(update(Measurement).values(seconds=10.0))
    found = plan(client, study_config)
    measuring = 2 * (21 * 13 * 0.01 + 12 * 0.2)
    assert rows(found)["sweep"]["seconds"] == pytest.approx(10 * 21 * 12 + measuring, rel=1e-3)
    assert any(f"{21 * 12:,} cells are priced by what the database holds" in note for note in found["notes"])


def test_the_newest_numerics_count_alone(
    client: TestClient, study_config: Config, add_probe: Callable[..., str]
) -> None:
    add_probe(numerics_version=NUMERICS_VERSION + 1)
    assert plan(client, study_config)["device"]["source"] == "unknown"


@pytest.mark.parametrize(
    ("name", "n_matrices", "grid_cells", "fits"),
    [
        ("qwen2_1.5b_caldera_uniform", 196, 196, True),
        ("qwen2_1.5b_caldera_manual_optimal", 196, 0, True),  # phase 0 sweeps nothing
        ("qwen2_7b_caldera_uniform", 196, 196 * 4, True),
        ("qwen2_72b_study", 560, 8400, True),
    ],
)
def test_the_plans_own_studies(
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    n_matrices: int,
    grid_cells: int,
    fits: bool,
) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 250 * 10**9)
    monkeypatch.setattr(machine, "host_memory", lambda: 64 * 10**9)
    found = plan(client, written(name), "RTX 3090")
    assert found["model"]["origin"].startswith("configs/models/")
    assert found["model"]["n_matrices"] == n_matrices
    assert found["totals"]["grid_cells"] == grid_cells
    assert found["device"]["source"] == "estimated"
    assert found["totals"]["device_memory"] < 24 * 2**30
    assert found["totals"]["seconds"] > 0
    assert found["fits"] is fits


def test_the_72b_fits_because_its_hessians_are_not_stored(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 250 * 10**9)
    monkeypatch.setattr(machine, "host_memory", lambda: 64 * 10**9)
    config = written("qwen2_72b_study")
    kept = config["calibration"]
    config["calibration"] = kept | {"keep": "hessians", "dtype": "float32"}
    (finding,) = plan(client, config, "RTX 3090")["findings"]
    assert finding["what"] == "disk"
    assert "keep: tokens" in finding["cure"]
    found = plan(client, config | {"calibration": kept}, "3090")
    assert found["fits"] is True
    steps = rows(found)
    assert steps["calibrate"]["disk"] < 10**9
    # what the calibration saves, the sweep pays
    assert steps["sweep"]["scratch"] > 60 * 10**9


def test_kl_on_a_7b_fits_a_card_that_the_model_does_not_fit(client: TestClient) -> None:
    # its further budgets and its report need what its choice needs
    found = plan(client, written("qwen2_7b_caldera_optimal") | {"phases": [1, 2, 3]}, "RTX 3090")
    assert [f for f in found["findings"] if f["what"] == "card memory"] == []
    assert 4 * 6_525_288_448 > 24 * 2**30 > rows(found)["sensitivity"]["device_memory"]


def test_a_measured_card_beats_its_estimate(
    client: TestClient, study_config: Config, add_probe: Callable[..., str]
) -> None:
    measured = replace(RATES, device_kind="cuda", device_name="NVIDIA GeForce RTX 3090", device_memory=24 * 2**30)
    add_probe(measured)
    found = plan(client, study_config, "RTX 3090")
    assert (found["device"]["source"], found["device"]["name"]) == ("measured", "NVIDIA GeForce RTX 3090")
    assert found["totals"]["device_memory"] is not None


def test_a_registered_model_is_planned_by_its_id(
    client: TestClient, study_config: Config, model: dict[str, Any]
) -> None:
    by_path = plan(client, study_config)
    by_id = plan(client, study_config | {"model": {"source": model["id"]}})
    assert by_id["model"]["origin"] == by_path["model"]["origin"] == f"the registered model {model['id']}"


def test_a_folder_is_planned_from_its_headers(client: TestClient, study_config: Config) -> None:
    assert "headers" in plan(client, study_config)["model"]["origin"]


def test_a_plan_is_taken_as_yaml(client: TestClient, study_config: Config) -> None:
    answer = client.post(
        "/api/v1/plans?device=A100",
        content=yaml.safe_dump(study_config),
        headers={"Content-Type": "application/yaml"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["device"]["name"] == "A100"


@pytest.mark.parametrize(
    ("change", "device", "status", "slug"),
    [
        ({"model": {"source": "no/such/folder"}}, None, 403, "path-not-allowed"),
        ({}, "GTX 1080", 422, "unknown-device"),
        ({}, "rtx", 422, "invalid-config"),
        ({"grid": {"b_q": [2], "rank": [-1]}}, None, 422, "invalid-request"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(
    client: TestClient, study_config: Config, change: Config, device: str | None, status: int, slug: str
) -> None:
    answer = client.post("/api/v1/plans", json={"config": study_config | change, "device": device})
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:bitbudget:problem:{slug}")


def test_a_hub_model_that_nobody_knows_needs_a_network(
    client: TestClient, study_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def away(*args: Any, **kwargs: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", away)
    answer = client.post("/api/v1/plans", json={"config": study_config | {"model": {"source": "some/model"}}})
    assert answer.status_code == 422
    assert answer.json()["type"].endswith("shapes-unknown")


def test_a_probe_is_refused_for_a_wrong_config(client: TestClient) -> None:
    answer = client.post("/api/v1/probes", json={"configs": [{"b_q": 99}]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith("configs.0")


def test_probes_are_listed(client: TestClient, add_probe: Callable[..., str]) -> None:
    id_ = add_probe()
    assert [row["id"] for row in client.get("/api/v1/probes").json()["items"]] == [id_]
    assert client.get(f"/api/v1/probes/{id_}").json()["device_name"] == "Test Processor"


def test_the_document_shows_an_example(client: TestClient) -> None:
    body = client.get("/openapi.json").json()["paths"]["/api/v1/plans"]["post"]["requestBody"]
    assert body["content"]["application/json"]["example"]["device"] == "RTX 3090"
