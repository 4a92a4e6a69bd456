"""Every list: pages that give each row once and in order, by every column offered, with filters, in one query."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event

from results_db.tables import Job
from tests.server.rows import Choices, fill_tables

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
N = 5
#: between the times of rows made by fill_tables
SECOND = "2026-03-04T05:06:08.000000Z"


@pytest.fixture
def filled(app: FastAPI, client: TestClient) -> TestClient:
    with app.state.database.write() as session:
        fill_tables(session, N)
    return client


def lists(app: FastAPI) -> dict[str, tuple[str, ...]]:
    """Path of each list → the columns that its document says it can be sorted by."""
    found = {}
    for path, item in app.openapi()["paths"].items():
        parameters = {p["name"]: p for p in item.get("get", {}).get("parameters", [])}
        if {"limit", "cursor", "sort", "order"} <= set(parameters):
            found[path] = tuple(parameters["sort"]["description"].rpartition(": ")[2].split(", "))
    return found


def walk(client: TestClient, path: str, **params: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = client.get(path, params=params | ({"cursor": cursor} if cursor else {}))
        assert page.status_code == 200, page.text
        rows += page.json()["items"]
        cursor = page.json()["next"]
        if cursor is None:
            return rows


def ordered(rows: list[dict[str, Any]], name: str, descending: bool) -> list[Any]:
    """Ids sorted by the column, nulls last, then by id."""
    by_id = sorted(rows, key=lambda row: row["id"], reverse=descending)
    known = sorted((r for r in by_id if r[name] is not None), key=lambda row: row[name], reverse=descending)
    return [row["id"] for row in [*known, *(row for row in by_id if row[name] is None)]]


def test_every_list_gives_each_row_once_in_order_by_each_column(app: FastAPI, filled: TestClient) -> None:
    offered = lists(app)
    assert len(offered) >= 17
    for path, names in offered.items():
        rows = filled.get(path).json()["items"]
        assert [row["id"] for row in rows] == ordered(rows, "id", True), path
        assert len(rows) == N, path
        for position, name in enumerate(names):
            for sort, descending in ((name, False), (f"-{name}", True)):
                order = {"order": "desc"} if descending else {}
                # one direction in pages, in turn, and the other at once
                limit = 3 if descending == bool(position % 2) else N
                seen = walk(filled, path, sort=sort, limit=limit, **order)
                assert [row["id"] for row in seen] == ordered(rows, name, descending), (path, sort)


def test_several_columns_with_directions_of_their_own(filled: TestClient) -> None:
    rows = filled.get("/api/v1/jobs").json()["items"]
    expected = sorted(rows, key=lambda row: row["id"])
    expected.sort(key=lambda row: row["state"])
    expected.sort(key=lambda row: row["priority"], reverse=True)
    seen = walk(filled, "/api/v1/jobs", sort="-priority,state", limit=1)
    assert [row["id"] for row in seen] == [row["id"] for row in expected]


def test_rows_that_come_between_pages_move_nothing(app: FastAPI, filled: TestClient) -> None:
    before = {row["id"] for row in filled.get("/api/v1/jobs").json()["items"]}
    page = filled.get("/api/v1/jobs", params={"sort": "kind,-state", "limit": 2}).json()
    seen = [row["id"] for row in page["items"]]
    while page["next"] is not None:
        with app.state.database.write() as session:
            for kind in ("a", "k0", "z"):
                id_ = f"jobs_9{len(seen)}{kind}"
                session.add(Job(id=id_, kind=kind, state="s0", params={}))
        page = filled.get("/api/v1/jobs", params={"sort": "kind,-state", "limit": 2, "cursor": page["next"]}).json()
        seen += [row["id"] for row in page["items"]]
        assert len(seen) < 30
    assert len(seen) == len(set(seen))
    assert before <= set(seen)


@contextmanager
def statements(app: FastAPI) -> Iterator[list[str]]:
    said: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            said.append(statement)

    event.listen(app.state.database.engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(app.state.database.engine, "before_cursor_execute", note)


@sqlite_only
def test_a_page_is_one_query_however_many_rows_it_has(app: FastAPI, filled: TestClient) -> None:
    for path in lists(app):
        with statements(app) as said:
            assert len(filled.get(path).json()["items"]) == N
        assert len(said) == 1, (path, said)


@sqlite_only
def test_a_cursor_belongs_to_its_query(filled: TestClient) -> None:
    asked = {"sort": "state", "limit": 1, "kind": "sweep"}
    assert filled.get("/api/v1/jobs", params=asked).json() == {"items": [], "next": None}
    del asked["kind"]
    cursor = filled.get("/api/v1/jobs", params=asked).json()["next"]
    again = filled.get("/api/v1/jobs", params=asked | {"cursor": cursor, "limit": 3})
    assert again.status_code == 200, "another size of page is the same query"
    for other in ({"sort": "kind"}, {"order": "desc"}, {"study_id": "x"}, {"created_after": "2026-01-01T00:00:00Z"}):
        answer = filled.get("/api/v1/jobs", params=asked | {"cursor": cursor} | other)
        assert answer.status_code == 422, other
        assert "another list, filter or sorting" in answer.json()["detail"]
    assert filled.get("/api/v1/workers", params={"sort": "state", "cursor": cursor}).status_code == 422


@sqlite_only
def test_a_cursor_that_was_tampered_with_reaches_no_database(filled: TestClient) -> None:
    asked = {"sort": "priority", "limit": 1}
    cursor = filled.get("/api/v1/jobs", params=asked).json()["next"]
    binding = json.loads(base64.urlsafe_b64decode(cursor + "=="))[0]
    ids = ([True, "x"], [1.5, "x"], [2**80, "x"], [None, "x"], ["1", "x"], [1, "a\0"], [1, 2], [[], {}])
    for values in ([], [None], ["x"], [1, 2, 3], *ids):
        forged = base64.urlsafe_b64encode(json.dumps([binding, *values]).encode()).decode().rstrip("=")
        answer = filled.get("/api/v1/jobs", params=asked | {"cursor": forged})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "cursor"), values


REFUSED = [
    ("sort=nothing", "sort"),
    ("sort=", "sort"),
    ("sort=state,state", "sort"),
    ("sort=state,-state", "sort"),
    ("sort=params", "sort"),
    ("order=up", "order"),
    ("created_after=yesterday", "created_after"),
    ("created_after=2026-01-01T00:00:00", "created_after"),
]


@sqlite_only
def test_a_sorting_that_is_none_is_refused(client: TestClient) -> None:
    for query, field in REFUSED:
        answer = client.get(f"/api/v1/jobs?{query}")
        assert answer.status_code == 422, query
        assert answer.json()["errors"][0]["field"] == field


FILTERS = [
    ("jobs", "study_id=studies_1&model_id=nothing", []),
    ("jobs", "phase=0", [1]),
    ("jobs", "created_after=2026-03-04T05:06:08Z", [2, 3, 4]),
    ("jobs", "created_after=2026-03-04T07:06:09%2B02:00", [4]),
    ("jobs", "created_before=2026-03-04T05:06:08Z", [0, 1]),
    ("models", "name_contains=N1", [2, 3]),
    ("models", "name_contains=%25", []),
    ("models", "name=n1", [2, 3]),
    ("studies", "name_contains=n0&model_id=models_1", [1]),
    ("allocations", "stale=true", [1, 2, 4]),
    ("allocations", "stale=false&name_contains=n", [0, 3]),
    ("fits", "stale=false", [0, 3]),
    ("fits", "chosen=true&model_id=models_2", [2]),
    ("gates", "stale=true&phase=1", [1]),
    ("sensitivities", "layer_idx=3", [3]),
    ("workers", "hostname=h2", [4]),
    ("compressions", "job_id=jobs_2", [2]),
]


def test_filters(filled: TestClient) -> None:
    for path, query, ids in FILTERS:
        answer = filled.get(f"/api/v1/{path}?{query}&order=asc")
        assert answer.status_code == 200, answer.text
        # rows with numbers for ids count from 1
        found = [row["id"] - 1 if type(row["id"]) is int else int(row["id"][-1]) for row in answer.json()["items"]]
        assert found == ids, (path, query)


#: what a filter takes only these of, and what is within another column
CHOICES: Choices = {
    ("", "projection"): ["q", "down"],
    ("", "method"): ["kl_anchor", "higgs"],
    ("jobs", "state"): ["failed", "dead"],
    ("jobs", "kind"): ["sweep", "compress"],
    ("jobs", "params"): [{"model_id": "models_0"}, {"model_id": "models_1"}],
    ("studies", "state"): ["running", "failed"],
    ("gates", "verdict"): ["GO", "NO-GO"],
    ("fits", "form"): ["additive", "monotone"],
    ("calibrations", "keeps"): ["hessians", "tokens"],
    ("validations", "split"): ["measure", "select"],
    ("workers", "state"): ["up", "down"],
}
#: filters that are no column of the same name: what is asked, and whether a row has it
MEANT: dict[str, tuple[Any, Callable[[dict[str, Any]], bool]]] = {
    "name_contains": ("N1", lambda row: "n1" in (row["name"] or "")),
    "stale": (True, lambda row: row["stale_at"] is not None),
    "created_after": (SECOND, lambda row: row["created_at"] >= SECOND),
    "created_before": (SECOND, lambda row: row["created_at"] < SECOND),
    "/api/v1/jobs?model_id": ("models_1", lambda row: row["params"]["model_id"] == "models_1"),
}


def test_every_documented_filter_narrows_to_the_rows_that_have_the_value(app: FastAPI, client: TestClient) -> None:
    with app.state.database.write() as session:
        fill_tables(session, N, CHOICES)
    for path in lists(app):
        rows = client.get(path).json()["items"]
        assert len(rows) == N
        for parameter in app.openapi()["paths"][path]["get"]["parameters"]:
            name = parameter["name"]
            if name in ("limit", "cursor", "sort", "order"):
                continue
            value, has = MEANT.get(f"{path}?{name}") or MEANT.get(name) or having(name, rows)
            answer = client.get(path, params={name: value})
            assert answer.status_code == 200, (path, name, answer.text)
            found = [row["id"] for row in answer.json()["items"]]
            assert found == [row["id"] for row in rows if has(row)], (path, name, value)
            assert 0 < len(found) < N, f"{path}: {name}={value} tells no rows apart: choose other values"


def having(name: str, rows: list[dict[str, Any]]) -> tuple[Any, Callable[[dict[str, Any]], bool]]:
    """A value of the column, and whether a row has it."""
    value = max(row[name] for row in rows if row[name] is not None)
    return value, lambda row: row[name] == value


def test_several_states(client: TestClient, model: dict[str, Any]) -> None:
    made = [client.post("/api/v1/calibrations", json={"model_id": model["id"]}).json()["id"] for _ in range(3)]
    client.post(f"/api/v1/jobs/{made[0]}/cancel")
    client.post(f"/api/v1/jobs/{made[1]}/pause")
    for query, n in (("state=cancelled&state=paused", 2), ("state=queued", 1), ("kind=sweep&kind=calibrate", 3)):
        assert len(client.get(f"/api/v1/jobs?{query}&model_id={model['id']}").json()["items"]) == n, query


@sqlite_only
def test_a_list_of_fits_leaves_the_residuals_out(filled: TestClient) -> None:
    listed = filled.get("/api/v1/fits").json()["items"][0]
    assert "residuals" not in listed
    assert "residuals" in filled.get(f"/api/v1/fits/{listed['id']}").json()


@sqlite_only
def test_a_misspelt_filter_is_not_a_list_of_everything(client: TestClient) -> None:
    for path, known in (
        ("jobs?stat=failed", "state"),
        ("exports/jobs?statee=failed", "state"),
        ("models/nothing?verbose=1", "none"),
        ("events?afterr=3", "after"),
        ("livez?x=1", "none"),
    ):
        answer = client.get(f"/api/v1/{path}")
        assert answer.status_code == 422, path
        assert answer.json()["errors"][0]["field"] in path
        assert known in answer.json()["detail"]
    assert client.get("/livez?x=1").status_code == 200, "probes may say what they like"
    refused = client.post("/api/v1/jobs/cancel?dry_run=true", json={"ids": ["job_1"]})
    assert refused.status_code == 422, "what is meant for the body does not hide in the address"
