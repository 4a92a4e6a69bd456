"""Every problem that is raised anywhere is in the catalogue, and the guide to HTTP tells of each."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from compress_core.errors import CompressCoreError
from server.kit.problems import BY_STATUS, PROBLEMS, TYPE

REPO = Path(__file__).resolve().parents[2]
DOCUMENT = REPO / "docs" / "http.md"
SOURCES = sorted(path for room in ("server", "web") for path in (REPO / room).rglob("*.py"))
sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


def calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node


def name_of(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def raised() -> Iterator[tuple[str, str, int | None]]:
    """(place, slug, status or None) of every problem whose slug the source spells out."""
    for path in SOURCES:
        for call in calls(path):
            place = f"{path.relative_to(REPO)}:{call.lineno}"
            for keyword in call.keywords:
                if keyword.arg == "slug" and isinstance(keyword.value, ast.Constant):
                    yield place, keyword.value.value, 422
            if name_of(call) == "Problem" and len(call.args) > 1 and isinstance(call.args[1], ast.Constant):
                status = call.args[0].value if isinstance(call.args[0], ast.Constant) else None
                yield place, str(call.args[1].value), status


def test_every_slug_in_the_sources_is_in_the_catalogue_with_its_status() -> None:
    found = list(raised())
    assert len(found) > 30
    assert [each for each in found if each[1] not in PROBLEMS] == []
    assert [(place, slug, s) for place, slug, s in found if s is not None and s not in PROBLEMS[slug].statuses] == []


def test_a_problem_is_made_with_its_slug_in_sight() -> None:
    """Else no test could look it up: only a core error's own code, a status of HTTP's, and what is added to a problem
    that was raised before are computed."""
    hidden = [
        f"{path.relative_to(REPO)}:{call.lineno}"
        for path in SOURCES
        for call in calls(path)
        if name_of(call) == "Problem"
        and (len(call.args) < 2 or not isinstance(call.args[1], ast.Constant))
        and not (len(call.args) > 1 and ast.unparse(call.args[1]) == "problem.slug")
    ]
    assert [place.partition(":")[0] for place in hidden] == ["server/kit/problem.py"] * 2, hidden


def subclasses(root: type[CompressCoreError]) -> Iterator[type[CompressCoreError]]:
    yield root
    for child in root.__subclasses__():
        yield from subclasses(child)


def test_every_core_error_has_its_entry() -> None:
    ours = {error.code for error in subclasses(CompressCoreError) if error.__module__.startswith("compress_core")}
    assert {code for code in ours if 422 not in PROBLEMS[code].statuses} == set()


def test_the_catalogue_is_consistent() -> None:
    for kind in PROBLEMS.values():
        assert kind.slug == kind.slug.lower().replace(" ", "-")
        assert kind.meaning.endswith(".")
        assert kind.cure.endswith(".")
    assert {slug for status, slug in BY_STATUS.items() if status not in PROBLEMS[slug].statuses} == set()


def test_the_catalogue_is_in_the_documentation() -> None:
    """``SNAPSHOT=write`` writes the table anew."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, mark, rest = text.partition("<!-- problems -->\n")
    kept, end, after = rest.partition("<!-- end of problems -->\n")
    assert mark
    assert end
    rows = [
        f"| `{kind.slug}` | {', '.join(map(str, kind.statuses))} | {kind.meaning} | {kind.cure} |\n"
        for kind in PROBLEMS.values()
    ]
    table = "".join(["| slug | status | meaning | what to do |\n", "|---|---|---|---|\n", *rows])
    if os.environ.get("SNAPSHOT") == "write":
        DOCUMENT.write_text(before + mark + table + end + after, encoding="utf-8")
        kept = table
    assert kept == table, "docs/http.md is behind server/kit/problems.py: run with SNAPSHOT=write and commit it"


@sqlite_only
def test_the_catalogue_is_served(client: TestClient) -> None:
    listed = client.get("/api/v1/problems").json()
    assert {row["slug"] for row in listed["items"]} == set(PROBLEMS)
    one = client.get("/api/v1/problems/wrong-state").json()
    assert (one["type"], one["statuses"]) == (TYPE + "wrong-state", [409])
    assert client.get("/api/v1/problems/none-such").status_code == 404


@sqlite_only
@pytest.mark.parametrize(
    ("method", "path", "options", "status", "slug"),
    [
        ("GET", "/api/v1/nowhere", {}, 404, "not-found"),
        ("GET", "/api/v1/jobs/nothing", {}, 404, "not-found"),
        ("DELETE", "/api/v1/jobs", {}, 405, "method-not-allowed"),
        ("GET", "/api/v1/jobs?limit=none", {}, 422, "invalid-request"),
        ("POST", "/api/v1/models", {"content": b'{"source": "\xff"}'}, 400, "malformed-body"),
        ("POST", "/api/v1/models", {"content": b"a=1"}, 422, "invalid-request"),
        ("POST", "/api/v1/studies", {"content": b" " * 1_000_001}, 413, "too-large"),
        ("POST", "/api/v1/studies", {"content": b"<a/>", "headers": {"Content-Type": "text/xml"}}, 415, None),
        ("POST", "/api/v1/studies", {"content": b"a: 1\na: 2", "headers": {"Content-Type": "text/yaml"}}, 422, None),
        ("GET", "/livez", {"headers": {"Host": "evil.example"}}, 403, "host-not-allowed"),
    ],
)
def test_what_goes_wrong_is_a_problem(
    client: TestClient, method: str, path: str, options: dict[str, Any], status: int, slug: str | None
) -> None:
    options = {"headers": {"Content-Type": "application/json"}} | options
    answer = client.request(method, path, **options)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"].startswith(TYPE)
    assert slug is None or body["type"] == TYPE + slug
    assert body["status"] == status
    assert body["detail"]
    assert body["title"]
    assert body["trace_id"] == answer.headers["x-trace-id"]
