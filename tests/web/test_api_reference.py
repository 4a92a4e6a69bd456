"""The API's reference: every operation, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi.testclient import TestClient

from results_db.settings import Settings
from server.app import create_app
from web.api_reference import api_groups, body_schemas


def test_every_operation_is_listed(tmp_path: Path) -> None:
    document = create_app(Settings(var_dir=tmp_path), run_loop=False).openapi()
    groups = api_groups(document)
    listed = {(operation.method.lower(), operation.path) for group in groups for operation in group.operations}
    assert listed == {(method, path) for path, item in document["paths"].items() for method in item}
    assert {"SweepParams", "AllocateParams", "EvaluateParams"} <= {
        schema.name for schema in body_schemas(document, groups)
    }


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path, database_url: str) -> None:
    app = create_app(Settings(var_dir=tmp_path, database_url=database_url), run_loop=False)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        answer = client.get("/docs")
    assert answer.status_code == 200
    assert "/api/v1/measurements/export" in answer.text
    assert "//cdn" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
