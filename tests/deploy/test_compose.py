"""docker-compose.yml: the schema holds, and what the service promises of its containers. No engine runs here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from results_db.settings import Settings
from tests.deploy.compose import COMPOSE, REPO, read_compose, read_image

UUID = "GPU-6b1f0d5e-0000-1111-2222-333344445555"
OURS = ("migrate", "server", "worker", "worker-cpu")
WORKERS = ("worker", "worker-cpu")
LONG_RUNNING = ("redis", "postgres", "server", "worker", "worker-cpu")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read_compose(BITBUDGET_GPU_UUID=UUID)


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return dict(compose["services"])


def _validate(file: Path) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("check-jsonschema")
    command = [str(script), "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_is_valid_by_the_compose_schema() -> None:
    done = _validate(COMPOSE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_refuses_what_compose_does_not_know(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(COMPOSE.read_text().replace("stop_grace_period: 30s", "stop_grace: 30s"))
    done = _validate(wrong)
    assert done.returncode == 1
    assert "stop_grace" in done.stdout


def test_compose_itself_reads_it_as_these_tests_do(services: dict[str, Any]) -> None:
    """Where the program is installed: `docker-compose config` needs no engine."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("no docker-compose on the PATH")
    environment = {"BITBUDGET_GPU_UUID": UUID, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    command = [program, "-f", str(COMPOSE), "--profile", "cpu", "--profile", "gpu", "config", "--format", "json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)["services"]
    assert theirs.keys() == services.keys()
    for name, service in services.items():
        for key in ("image", "environment", "profiles", "user", "read_only", "cap_drop", "command"):
            assert theirs[name].get(key) == service.get(key), (name, key)


def test_the_services_are_those_of_the_guide(services: dict[str, Any]) -> None:
    assert set(services) == {*LONG_RUNNING, "migrate"}
    assert {name: service["profiles"] for name, service in services.items() if "profiles" in service} == {
        "worker": ["gpu"],
        "worker-cpu": ["cpu"],
    }


def test_only_the_server_publishes_and_only_on_loopback(services: dict[str, Any]) -> None:
    assert [name for name, service in services.items() if service.get("ports")] == ["server"]
    assert services["server"]["ports"] == ["127.0.0.1:8000:8000"]
    assert read_image("server").env["BITBUDGET_PORT"] == "8000"
    assert not [name for name, service in services.items() if service.get("network_mode") or service.get("privileged")]


def test_database_and_redis_have_no_way_out(compose: dict[str, Any], services: dict[str, Any]) -> None:
    assert compose["networks"]["inside"] == {"internal": True}
    for name in ("redis", "postgres", "migrate"):
        assert services[name]["networks"] == ["inside"], name
    # the server's port and the worker's hub need the other one
    for name in ("server", *WORKERS):
        assert services[name]["networks"] == ["inside", "outside"], name


@pytest.mark.parametrize("name", [*OURS, "redis", "postgres"])
def test_a_container_may_do_little(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()
    user = service.get("user") or read_image(service["build"]["target"]).last("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), user


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_service_that_stays_has_a_probe_and_comes_back(services: dict[str, Any], name: str) -> None:
    service = services[name]
    own = service.get("healthcheck", {})
    assert own.get("test") or read_image(service["build"]["target"]).probe
    assert service["restart"] == "unless-stopped"
    if own:
        assert {"interval", "timeout", "start_period"} <= own.keys()


@pytest.mark.parametrize("name", OURS)
def test_ours_have_an_init(services: dict[str, Any], name: str) -> None:
    assert services[name]["init"] is True


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_may_finish_its_experiment(services: dict[str, Any], name: str) -> None:
    """Longer than the lease: a worker that gives its job back is not mistaken for one that is lost."""
    grace = services[name]["stop_grace_period"]
    assert float(grace[:-1]) * _UNITS[grace[-1]] > 10 * Settings.model_fields["lease_s"].default
    assert services[name]["shm_size"]


def test_what_is_needed_is_waited_for(services: dict[str, Any]) -> None:
    healthy, done = {"condition": "service_healthy"}, {"condition": "service_completed_successfully"}
    needs = {"redis": healthy, "postgres": healthy, "migrate": done}
    assert services["migrate"]["depends_on"] == {"postgres": healthy}
    for name in ("server", *WORKERS):
        assert services[name]["depends_on"] == needs, name
    assert services["migrate"]["restart"].startswith("on-failure")


def test_the_gpu_is_reserved_by_its_uuid(services: dict[str, Any]) -> None:
    (gpu,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu == {"driver": "nvidia", "device_ids": [UUID], "capabilities": ["gpu"]}
    assert services["worker"]["environment"]["BITBUDGET_DEVICE"] == UUID
    # NVML, which the worker asks for the card, comes with "utility"
    assert read_image("worker").env["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert services["worker-cpu"]["environment"]["BITBUDGET_DEVICE"] == "cpu"
    assert "deploy" not in services["worker-cpu"]


def test_a_forgotten_uuid_is_named_and_harms_no_other_profile() -> None:
    """``:?`` would stop the profile `cpu` too: compose fills in the whole file before it looks at profiles."""
    services = read_compose()["services"]
    (gpu,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["device_ids"] == [services["worker"]["environment"]["BITBUDGET_DEVICE"]]
    assert "BITBUDGET_GPU_UUID" in gpu["device_ids"][0]


def test_no_password_is_in_the_file_or_in_an_environment(compose: dict[str, Any], services: dict[str, Any]) -> None:
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            assert not re.search(r"://[^/\s]*:[^/\s]*@", str(value)), (name, variable)
            if "PASSWORD" in variable:
                assert variable.endswith("_FILE"), (name, variable)
                assert value == "/run/secrets/postgres_password"
                assert service["secrets"] == ["postgres_password"]
    assert compose["secrets"] == {"postgres_password": {"file": "./secrets/postgres_password"}}
    ignored = (REPO / ".gitignore").read_text().split()
    assert "/secrets/" in ignored


def test_environments_hold_settings_that_exist(services: dict[str, Any]) -> None:
    known = {f"BITBUDGET_{name.upper()}" for name in Settings.model_fields}
    given = {name for service in services.values() for name in service.get("environment", {})}
    given |= {name for target in ("server", "worker") for name in read_image(target).env}
    assert {name for name in given if name.startswith("BITBUDGET_")} <= known


def test_images_of_others_are_pinned_by_version(services: dict[str, Any]) -> None:
    for name in ("redis", "postgres"):
        assert re.search(r":\d+\.\d+(\.\d+)?-alpine$", services[name]["image"]), name


def test_redis_keeps_what_it_is_told(services: dict[str, Any]) -> None:
    command = services["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert services["redis"]["volumes"] == ["redis:/data"]


def test_volumes_are_named(compose: dict[str, Any], services: dict[str, Any]) -> None:
    for name, service in services.items():
        for volume in service["volumes"]:
            source, target, *mode = volume.split(":")
            assert source in compose["volumes"] or (source, target, mode) == ("./models", "/models", ["ro"]), name
