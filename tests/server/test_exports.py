"""Exports: every table, every form, read back as the database has it; streamed a batch at a time."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from typing import Any

import pyarrow.parquet
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import delete, event, func, insert, select, update

from results_db.cells import csv_cell, plain
from results_db.migrate import head_revision
from results_db.tables import Evaluation, EvaluationItem, Measurement, Model
from server.exports import batches
from server.exports.batches import Rows
from server.exports.catalogue import EXPORTS, Export
from server.exports.formats import WRITERS, Format
from server.exports.parquet import write_parquet
from tests.server.rows import fill_tables

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def filled(app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Five rows in each table, read two at a time."""
    monkeypatch.setattr(batches, "BATCH", 2)
    with app.state.database.write() as session:
        fill_tables(session, 5)
        # what the forms might spoil
        config = {"text": 'a\nb,"c" ü', "n": [1, None, 2.5]}
        session.execute(update(Model).values(name='=HYPERLINK("x")', config=config))
        session.execute(update(Measurement).values(raw_mse=1 / 3, nbytes=2**53 + 1))
    return client


def rows_of(app: FastAPI, export: Export) -> list[dict[str, Any]]:
    """The table's rows by the ORM, in JSON's types."""
    with app.state.database.read() as session:
        found = session.scalars(select(export.table).order_by(export.key)).all()
    return [{name: plain(getattr(row, name)) for name in export.columns} for row in found]


def read_jsonl(content: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    first, *rest = [json.loads(line) for line in content.splitlines()]
    return first["schema"], rest


def read_parquet(content: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    table = pyarrow.parquet.read_table(io.BytesIO(content))
    packed = {field.name for field in table.schema if (field.metadata or {}).get(b"json")}

    def value(name: str, cell: Any) -> Any:
        return json.loads(cell) if name in packed and cell is not None else plain(cell)

    rows = [{name: value(name, cell) for name, cell in row.items()} for row in table.to_pylist()]
    return json.loads(table.schema.metadata[b"bitbudget"]), rows


def test_every_table_in_every_form_gives_the_rows_of_the_database(app: FastAPI, filled: TestClient) -> None:
    for name, export in EXPORTS.items():
        expected = rows_of(app, export)
        assert len(expected) == 5
        answers = {form: filled.get(f"/api/v1/exports/{name}?format={form}") for form in Format}
        for answer in answers.values():
            assert answer.status_code == 200, answer.text
            assert f'filename="{name}.' in answer.headers["content-disposition"]
        schema, rows = read_jsonl(answers[Format.JSONL].content)
        assert rows == expected, name
        packed_schema, packed = read_parquet(answers[Format.PARQUET].content)
        assert packed == expected, name
        table = list(csv.reader(io.StringIO(answers[Format.CSV].text)))
        assert table[0] == list(export.columns)
        cells = [["" if (cell := csv_cell(row[column])) is None else str(cell) for column in row] for row in expected]
        assert table[1:] == cells, name
        told = json.loads(answers[Format.CSV].headers["x-bitbudget-export"])
        for each in (schema, packed_schema, told):
            assert each["export"] == name
            assert each["schema_revision"] == head_revision()
            assert each["format_version"] == 1
            assert list(each["columns"]) == list(export.columns)
            assert datetime.fromisoformat(each["exported_at"]).tzinfo is not None


@sqlite_only
def test_parquet_has_the_columns_types(filled: TestClient) -> None:
    content = filled.get("/api/v1/exports/measurements?format=parquet").content
    file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
    types = {field.name: (str(field.type), field.nullable) for field in file.schema_arrow}
    assert types["id"] == ("int64", False)
    assert types["raw_mse"] == ("double", False)
    assert types["states"] == ("int64", True)
    assert types["config"] == ("string", False)
    assert types["created_at"] == ("timestamp[us, tz=UTC]", False)
    assert file.num_row_groups == 3


@sqlite_only
def test_a_spreadsheet_runs_nothing(filled: TestClient) -> None:
    text = filled.get("/api/v1/exports/models?format=csv").text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["name"] for row in rows} == {'\'=HYPERLINK("x")'}


def test_filters(filled: TestClient) -> None:
    for query, n in (
        ("measurements?model_id=models_1", 1),
        ("measurements?layer_idx=3&b_q=1", 1),
        ("measurements?b_q=1", 2),
        ("measurements?created_after=2026-03-04T05:06:09Z", 1),
        ("evaluation_items?evaluation_id=evaluations_3", 1),
        ("jobs?state=s0&kind=k0", 2),
        ("gates?study_id=nothing", 0),
    ):
        _, rows = read_jsonl(filled.get(f"/api/v1/exports/{query}").content)
        assert len(rows) == n, query
    schema, _ = read_jsonl(filled.get("/api/v1/exports/jobs?state=s0").content)
    assert schema["filters"] == {"state": "s0"}
    for query, field in (
        ("gates?b_q=2", "b_q"),
        ("evaluation_items?created_after=2026-03-04T05:06:09Z", "created_after"),
        ("measurements?projection=queue", "projection"),
        ("measurements?format=xml", "format"),
    ):
        answer = filled.get(f"/api/v1/exports/{query}")
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert filled.get("/api/v1/exports/tokens").status_code == 404


@sqlite_only
def test_no_secret_is_exported(filled: TestClient) -> None:
    listed = filled.get("/api/v1/exports").json()["items"]
    names = {row["name"]: set(row["columns"]) for row in listed}
    assert not names.keys() & {"tokens", "page_sessions", "idempotency_keys"}
    assert "lease_token" not in names["attempts"]
    assert all(row["description"] for row in listed)


@contextmanager
def selects(app: FastAPI) -> Iterator[list[str]]:
    said: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.extend([statement] if statement.startswith("SELECT") else [])

    event.listen(app.state.database.engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(app.state.database.engine, "before_cursor_execute", note)


def many_items(app: FastAPI, n: int) -> None:
    with app.state.database.write() as session:
        fill_tables(session, 1)
        session.execute(delete(EvaluationItem))
        id_ = session.scalar(select(Evaluation.id))
        items = [{"evaluation_id": id_, "item_idx": i, "nll": i / 7, "n_tokens": 64} for i in range(n)]
        session.execute(insert(EvaluationItem), items)


@pytest.mark.parametrize("form", Format)
def test_an_export_of_many_rows_holds_one_batch(app: FastAPI, client: TestClient, form: Format) -> None:
    many_items(app, 5 * batches.BATCH)
    export = EXPORTS["evaluation_items"]
    with selects(app) as said:
        pieces = WRITERS[form](Rows.now(app.state.database, export, []), {})
        assert len(said) == 1, "where it ends"
        sizes = []
        read = []
        for piece in pieces:
            sizes.append(len(piece))
            read.append(len(said) - 1)
    # a piece leaves before the next batch is read, and none is larger than a batch
    assert all(after - before <= 1 for before, after in pairwise(read))
    assert read[-1] >= 5
    assert max(sizes) < 3 * sum(sizes) / 5


def test_no_transaction_is_open_between_batches(app: FastAPI, client: TestClient) -> None:
    many_items(app, batches.BATCH + 1)
    database = app.state.database
    pieces = write_parquet(Rows.now(database, EXPORTS["evaluation_items"], []), {})
    assert next(pieces)
    assert database.engine.pool.checkedout() == 0
    with database.write() as session:  # nor does a slow reader keep writers out
        session.execute(update(EvaluationItem).values(nll=0.0))
    assert sum(len(piece) for piece in pieces) > 0


def test_rows_that_come_meanwhile_are_left_out(app: FastAPI, filled: TestClient) -> None:
    database = app.state.database
    rows = iter(Rows.now(database, EXPORTS["evaluation_items"], []))
    seen = len(next(rows))
    with database.write() as session:
        id_ = session.scalar(select(Evaluation.id).limit(1))
        session.add(EvaluationItem(id=99, evaluation_id=id_, item_idx=99, nll=1.0, n_tokens=1))
    seen += sum(len(batch) for batch in rows)
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(EvaluationItem)) == 6
    assert seen == 5


@sqlite_only
def test_without_pyarrow_it_says_what_to_install(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    answer = client.get("/api/v1/exports/jobs?format=parquet")
    assert (answer.status_code, answer.json()["type"]) == (501, "urn:bitbudget:problem:parquet-not-installed")
    assert "bitbudget[server]" in answer.json()["detail"]


@sqlite_only
def test_an_empty_table_is_a_file_as_well(client: TestClient) -> None:
    schema, rows = read_jsonl(client.get("/api/v1/exports/jobs").content)
    assert (schema["up_to_id"], rows) == (None, [])
    assert client.get("/api/v1/exports/jobs?format=csv").text.count("\n") == 1
    assert read_parquet(client.get("/api/v1/exports/jobs?format=parquet").content)[1] == []


@sqlite_only
def test_the_first_address_of_exports_still_answers(filled: TestClient) -> None:
    old = filled.get("/api/v1/measurements/export?format=csv&b_q=1")
    assert old.text == filled.get("/api/v1/exports/measurements?format=csv&b_q=1").text


def test_rows_of_megabytes_come_few_at_a_time(app: FastAPI) -> None:
    with app.state.database.write() as session:
        fill_tables(session, 3)
    heavy = replace(EXPORTS["fits"], batch=1)
    assert EXPORTS["fits"].batch is not None
    assert [len(batch) for batch in Rows.now(app.state.database, heavy, [])] == [1, 1, 1]
