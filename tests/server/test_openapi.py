"""The OpenAPI document is a contract: what changes in it changes in the committed snapshot, on purpose.

``SNAPSHOT=write pytest tests/server/test_openapi.py`` writes the snapshot anew.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from starlette.responses import Response

from compress_core.allocate.verify import verify
from results_db.settings import Settings
from server.app import create_app
from server.kit.problems import PROBLEMS
from server.openapi.tags import TAGS

SNAPSHOT = Path(__file__).with_name("openapi.json")


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document as /openapi.json serves it; nothing of one machine is in it."""
    settings = Settings(var_dir=tmp_path_factory.mktemp("var"))
    made = create_app(settings, run_loop=False, page=False).openapi()
    return json.loads(json.dumps(made))


def as_text(document: dict[str, Any]) -> str:
    """Pretty and stable: keys in order, without the version of the checkout."""
    shown = document | {"info": {k: v for k, v in document["info"].items() if k != "version"}}
    return json.dumps(shown, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def test_the_document_is_the_snapshot(document: dict[str, Any]) -> None:
    made = as_text(document)
    if os.environ.get("SNAPSHOT") == "write":
        SNAPSHOT.write_text(made, encoding="utf-8")
    kept = SNAPSHOT.read_text(encoding="utf-8")
    if made != kept:
        changed = "\n".join(
            list(difflib.unified_diff(kept.splitlines(), made.splitlines(), "openapi.json", "now", lineterm="", n=2))[
                :60
            ]
        )
        pytest.fail(f"the API changed: if you mean it, run with SNAPSHOT=write and commit the file\n{changed}")


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    """References lead into the document's components."""
    return Draft202012Validator(schema | {"components": document["components"]})


def wrong(document: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator(document, schema).iter_errors(value)]


def example(content: dict[str, Any]) -> Any:
    return content["example"] if "example" in content else next(iter(content["examples"].values()))["value"]


def test_every_operation_says_what_it_does(document: dict[str, Any]) -> None:
    names = []
    for name, operation in operations(document):
        assert operation.get("summary"), name
        assert operation.get("description"), f"{name} needs a docstring"
        assert operation["tags"], name
        assert set(operation["tags"]) <= set(TAGS), f"{name}: describe its tag in server/openapi/tags.py"
        assert re.fullmatch(r"[a-z][a-z0-9_]*", operation["operationId"]), name
        names.append(operation["operationId"])
    assert sorted(names) == sorted(set(names)), "operation ids are the functions' names: give them different ones"
    assert {tag for _, operation in operations(document) for tag in operation["tags"]} == set(TAGS)


def test_every_body_and_every_answer_has_an_example_that_is_valid(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        contents = list(operation.get("requestBody", {}).get("content", {}).items())
        for status, response in operation["responses"].items():
            if status.startswith("2"):
                assert response.get("content") or status == "204", f"{name}: {status} has no content"
                contents += response.get("content", {}).items()
        for media_type, content in contents:
            assert content.get("schema"), f"{name}: {media_type} has no schema"
            assert {"example", "examples"} & content.keys(), f"{name}: {media_type} has no example"
            given = example(content)
            bad = wrong(document, content["schema"], given)
            assert bad == [], f"{name}: {given}"


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else ()
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from references(inner)

    for reference in set(references(document)):
        kind, _, name = reference.removeprefix("#/components/").partition("/")
        assert name in document["components"].get(kind, {}), reference


def test_the_certificate_of_the_example_can_be_verified(document: dict[str, Any]) -> None:
    answer = document["paths"]["/api/v1/allocations/{allocation_id}/certificate.json"]["get"]["responses"]["200"]
    checks = verify(answer["content"]["application/json"]["example"])
    assert [check for check in checks if not check.passed] == []


def test_every_json_answer_has_a_model(document: dict[str, Any]) -> None:
    bare = [
        name
        for name, operation in operations(document)
        for status, response in operation["responses"].items()
        if status.startswith("2")
        and response.get("content", {}).get("application/json", {"schema": 1}) in ({}, {"schema": {}})
    ]
    assert bare == []


def test_every_schema_example_is_valid(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        for given in schema.get("examples", []):
            assert wrong(document, schema, given) == [], name


def test_every_operation_says_how_it_refuses(document: dict[str, Any]) -> None:
    responses = document["components"]["responses"]
    for name, operation in operations(document):
        refusals = {status: r for status, r in operation["responses"].items() if status[0] in "45"}
        assert {"400", "401", "403", "422", "500", "503"} <= set(refusals), name
        assert ("{" not in name) or "404" in refusals, name
        assert name.startswith("GET") or {"408", "413", "415"} <= set(refusals), name
        for status, refusal in refusals.items():
            if "$ref" in refusal:
                refusal = responses[refusal["$ref"].rsplit("/", 1)[-1]]
            # readiness answers its own body with 503
            assert "application/problem+json" in refusal["content"] or (name.endswith("/readyz") and status == "503")


def test_what_is_done_once_is_what_is_done_at_all(document: dict[str, Any]) -> None:
    """A key is kept with what was written: a POST that only reads knows none."""
    posts = {name: o for name, o in operations(document) if name.startswith("POST")}
    keyed = {n for n, o in posts.items() if any(p["name"] == "Idempotency-Key" for p in o.get("parameters", []))}
    assert {o["operationId"] for n, o in posts.items() if n not in keyed} == {
        "create_plan",
        "get_frontier",
        "get_what_if",
        "run_sql",
        "run_canned_query",
    }
    assert all("409" in posts[name]["responses"] for name in keyed)


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_each_example_may_be_sent_and_names_rows_where_a_404_is_documented(
    client: TestClient, document: dict[str, Any]
) -> None:
    """On a database without rows; that each answer is one of those documented is held for every TestClient."""
    told, found = set(), set()
    for name, operation in operations(document):
        method, path = name.split()
        if method != "POST" or "{" in path:
            continue
        if "404" in operation["responses"]:
            told.add(path)
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        body = {} if content is None else {"json": example(content)}
        if client.post(path, **body).status_code == 404:
            found.add(path)
    assert found == told


@pytest.mark.parametrize(
    ("status", "media_type", "said"), [(418, "application/problem+json", "no 418"), (200, "text/html", "no text/html")]
)
def test_every_test_client_refuses_an_answer_that_is_not_documented(status: int, media_type: str, said: str) -> None:
    app = FastAPI()
    app.add_api_route("/api/v1/jobs/{job_id}", lambda: Response("", status, media_type=media_type))
    with pytest.raises(AssertionError, match=f"{said} is documented of .*GET /api/v1/jobs/one"):
        TestClient(app).get("/api/v1/jobs/one")


def test_the_examples_of_problems_are_problems(document: dict[str, Any]) -> None:
    told = set()
    for status, response in document["components"]["responses"].items():
        content = response["content"]["application/problem+json"]
        for slug, example in content["examples"].items():
            assert wrong(document, content["schema"], example["value"]) == [], (status, slug)
            told.add(slug)
    assert told == set(PROBLEMS)
