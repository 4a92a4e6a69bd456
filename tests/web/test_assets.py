"""Static files and the chart library: cached for good, gzipped, nothing else served."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import web
from results_db.settings import Settings
from web.assets import asset_url, mount
from web.bundle import ChartBundle

STATIC = Path(web.__file__).parent / "static"


@pytest.fixture(scope="module")
def bundle(var_dir: Path) -> ChartBundle:
    """The chart library that all tests share."""
    bundle = ChartBundle(Settings(var_dir=var_dir).charts_dir)
    status = bundle.wait(120)
    assert status.state == "ready", status.message
    return bundle


@pytest.fixture(scope="module")
def assets(bundle: ChartBundle, var_dir: Path, repo: Path) -> Iterator[TestClient]:
    app = FastAPI()
    mount(app, Settings(var_dir=var_dir, model_roots=(repo,)))
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("name", sorted(p.relative_to(STATIC).as_posix() for p in STATIC.rglob("*.*")))
def test_static_file_is_immutable_and_gzipped(assets: TestClient, name: str) -> None:
    response = assets.get(asset_url(name))
    assert response.status_code == 200
    assert "immutable" in response.headers["cache-control"]
    assert response.headers["content-encoding"] == "gzip"
    assert response.content == (STATIC / name).read_bytes()
    plain = assets.get(asset_url(name), headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == response.content


@pytest.mark.parametrize("path", ["/assets/000000000000/app.css", "/assets/charts/charts-0.js"])
def test_other_versions_are_not_found(assets: TestClient, path: str) -> None:
    assert assets.get(path).status_code == 404


@pytest.mark.parametrize("name", ["../pages.py", "..%2fpages.py", "js", "", "%2e%2e/pages.py"])
def test_nothing_else_is_served(assets: TestClient, name: str) -> None:
    version = asset_url("app.css").rsplit("/", 1)[0]
    assert assets.get(f"{version}/{name}").status_code == 404


def test_favicon(assets: TestClient) -> None:
    assert assets.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_modules_import_only_their_neighbours() -> None:
    for path in STATIC.rglob("*.js"):
        for source in re.findall(r'from "([^"]+)"', path.read_text()):
            assert source.startswith("./")
            assert (path.parent / source).is_file()


def test_chart_library_is_served_under_its_content_hash(assets: TestClient) -> None:
    answer = assets.get("/assets/charts.json")
    assert answer.json()["state"] == "ready"
    assert answer.headers["cache-control"] == "no-store"
    src = answer.json()["src"]
    assert re.fullmatch(r"/assets/charts/charts-[0-9a-f]{16}\.js", src)
    library = assets.get(src)
    assert library.headers["content-encoding"] == "gzip"
    assert "immutable" in library.headers["cache-control"]
    assert "as vegaEmbed" in library.text[-200:]


def test_chart_library_is_built_once(bundle: ChartBundle) -> None:
    again = ChartBundle(bundle.folder)
    status = again.status()
    assert status == bundle.status()
    assert again.wait(0) == status
    assert status.file is not None
    packed = status.file.with_name(status.file.name + ".gz")
    assert gzip.decompress(packed.read_bytes()) == status.file.read_bytes()


def test_library_of_another_version_is_not_reused(bundle: ChartBundle, tmp_path: Path) -> None:
    manifest = json.loads((bundle.folder / "charts.json").read_text())
    (tmp_path / "charts.json").write_text(json.dumps(manifest | {"vl_convert": "0.0"}))
    (tmp_path / manifest["file"]).write_text("old")
    other = ChartBundle(tmp_path)
    assert other.status().state == "building"
    assert other.wait(120).state == "ready"
    assert (tmp_path / manifest["file"]).read_bytes() != b"old"


def test_failure_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    bundle = ChartBundle(tmp_path / "cache")
    status = bundle.wait(120)
    assert status.state == "failed"
    assert "exists" in str(status.message).lower()
