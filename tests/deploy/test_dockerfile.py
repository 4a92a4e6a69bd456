"""Dockerfile and .dockerignore: what gets into which image. No engine runs here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.compose import DOCKERFILE, REPO, Image, read_image, read_stages
from tests.sources import imports

TARGETS = ("server", "worker")
#: rooms that an image does without, and why a room that is there may import them only where they are not needed
LEFT_OUT = {"server": {"worker"}, "worker": {"server", "web", "cli", "migrations"}}


@pytest.fixture(scope="module", params=TARGETS)
def image(request: pytest.FixtureRequest) -> Image:
    return read_image(request.param)


def _context(folder: Path) -> set[str]:
    lines = (REPO / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    return {path for path in exclude_paths(str(folder), patterns) if not (folder / path).is_dir()}


def test_every_base_is_pinned_by_version() -> None:
    stages = read_stages()
    bases = {stage.base for stage in stages.values()} - stages.keys()
    assert bases
    for base in bases:
        assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base), base


def test_what_is_copied_exists_and_gets_into_the_context() -> None:
    context = _context(REPO)
    for stage in read_stages().values():
        for value in stage.values("COPY"):
            if value.startswith("--from="):
                origin, path, _target = value.removeprefix("--from=").split()
                assert any(path in run for run in _runs_of(origin)), value
                continue
            for source in value.split()[:-1]:
                assert any(path == source or path.startswith(f"{source}/") for path in context), source


def _runs_of(stage: str) -> list[str]:
    stages = read_stages()
    runs = stages[stage].values("RUN")
    return runs + (_runs_of(stages[stage].base) if stages[stage].base in stages else [])


def test_nothing_else_gets_into_the_context(tmp_path: Path) -> None:
    """A checkout as it is after work: data, secrets, environments, caches."""
    kept = ("cli/main.py", "demo/model/model.safetensors", "configs/demo.yaml", "pyproject.toml", "web/static/app.css")
    unwanted = (
        *(".git/config", ".venv/bin/python", "var/bitbudget.db", "secrets/postgres_password", ".env", "models/m.bin"),
        *("data/text.parquet", "tests/conftest.py", "docs/guide.md", "benchmarks/x.py", "cli/__pycache__/main.pyc"),
        *("bitbudget.egg-info/PKG-INFO", ".mypy_cache/x", "web/.secret", "worker/old.pyc", "notes.txt", "server/.env"),
    )
    for name in (*kept, *unwanted):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    # the engine's client always sends these two
    assert _context(tmp_path) - {"Dockerfile", ".dockerignore"} == set(kept)


def test_the_server_is_without_torch_and_the_worker_with_it() -> None:
    server = " ".join(run for stage in ("server", "server-environment") for run in _runs_of(stage))
    assert "torch" not in server
    assert "[server]" in server
    assert any("[worker" in run for run in _runs_of("worker"))


def test_no_compiler_but_the_one_that_triton_needs_is_left() -> None:
    installed = {stage: " ".join(_runs_of(stage)) for stage in ("server", "server-environment", "worker")}
    assert "apt-get" not in installed["server"]
    assert "apt-get" not in installed["server-environment"]
    packages = re.findall(r"--no-install-recommends ([\w -]+)", installed["worker"])
    assert [words.split() for words in packages] == [["gcc", "libc6-dev"]]
    assert "rm -rf /var/lib/apt/lists/*" in installed["worker"]
    assert all("--without-pip" in run for runs in installed.values() for run in [runs] if "venv" in run)


@pytest.mark.parametrize("stage", ["server-environment", "worker"])
def test_every_installation_is_constrained_and_checked(stage: str) -> None:
    runs = _runs_of(stage)
    for run in runs:
        assert run.count("pip install") == run.count("--constraint constraints.txt"), run
    assert any("pip check" in run for run in runs)


@pytest.mark.parametrize("stage", ["server-environment", "worker"])
def test_dependencies_are_installed_before_the_code_is_copied(stage: str) -> None:
    """A change of the code must not install torch anew."""
    steps = read_stages()[stage].steps
    rooms = [i for i, (name, value) in enumerate(steps) if name == "COPY" and (REPO / value.split()[0]).is_dir()]
    installs = [i for i, (name, value) in enumerate(steps) if name == "RUN" and "pip install" in value]
    assert max(installs) < min(rooms)


def test_an_image_runs_as_nobody_in_particular(image: Image) -> None:
    assert image.last("USER") == "10001:10001"
    assert image.command[:2] == ["python", "-m"]
    assert image.probe[:2] == ["python", "-m"]
    assert image.last("LABEL")


@pytest.mark.xdist_group("sources")
def test_an_image_has_the_rooms_that_its_rooms_import(image: Image) -> None:
    """An import that nothing can satisfy would show when the container starts, or later: when a job first needs it."""
    target = image.stages[-1].name
    rooms = {name for name in image.copied if (REPO / name / "__init__.py").exists()}
    assert not rooms & LEFT_OUT[target]
    for room in rooms:
        for path, names in imports(room).items():
            assert not names & LEFT_OUT[target], path


def test_a_linter_finds_nothing() -> None:
    """Where it is installed: hadolint reads the shell commands as well."""
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint on the PATH")
    done = subprocess.run([program, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


#: what torch's builds for CUDA bring along
_WITH_CUDA = {"triton"}
#: rooms that an image uses in part: the server what needs no torch of compress_core, both the model's files of demo
_IN_PART = {"server": {"compress_core", "demo"}, "worker": {"demo"}}


def _requirements(extra: str) -> set[str]:
    """Every distribution that ``.[extra]`` brings along, by its name in normal form."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"][extra]]]
    found: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found and not wanted.extras:
            continue
        found.add(name)
        for line in requires(name) or ():
            needed = Requirement(line)
            extras = ("", *wanted.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return found


def test_what_the_server_installs_brings_no_torch_along() -> None:
    """Neither by the project's own dependencies, which every image has, nor by those of a library."""
    assert {"torch", "transformers", "numba", "safetensors"} <= _requirements("worker")
    server = _requirements("server")
    assert {"fastapi", "numpy", "sqlalchemy"} <= server
    assert not server & {"torch", "transformers", "numba", "safetensors", "triton"}
    assert not {name for name in server if name.startswith("nvidia-")}


@pytest.mark.xdist_group("sources")
@pytest.mark.parametrize("target", TARGETS)
def test_an_image_installs_what_its_rooms_import(target: str) -> None:
    """The tests' environment has the libraries of both images: a forgotten one would show in a container alone."""
    installed = _requirements(target) | {"bitbudget"}
    owners = packages_distributions()
    ours = {*sys.stdlib_module_names, *(entry.name for entry in REPO.iterdir())}
    missing: dict[str, str] = {}
    for room in set(read_image(target).copied) - _IN_PART[target]:
        for path, modules in imports(room).items():
            for module in modules - ours:
                names = {canonicalize_name(name) for name in owners.get(module, [module])}
                if not names & (installed | _WITH_CUDA):
                    missing[module] = path
    assert missing == {}
