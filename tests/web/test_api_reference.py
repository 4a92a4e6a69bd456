"""The API's reference: every operation, nothing from elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from web.api_reference import api_groups, body_schemas

#: the reference is made of the code alone; in the process that has the page
pytestmark = [pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True), pytest.mark.xdist_group("pages")]


def test_every_operation_is_listed(shown: Any) -> None:
    document = shown.client.app.openapi()
    groups = api_groups(document)
    listed = {(operation.method.lower(), operation.path) for group in groups for operation in group.operations}
    assert listed == {(method, path) for path, item in document["paths"].items() for method in item}
    assert {"SweepParams", "AllocateParams", "EvaluateParams"} <= {
        schema.name for schema in body_schemas(document, groups)
    }


def test_the_page_needs_nothing_from_elsewhere(shown: Any) -> None:
    answer = shown.client.get("/docs")
    assert answer.status_code == 200
    assert "/api/v1/measurements/export" in answer.text
    assert "//cdn" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
