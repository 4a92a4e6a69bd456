"""/api/v1/sql."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from results_db.cells import csv_lines
from results_db.sql.canned import CANNED
from results_db.sql.contract import CONTRACT, SQL_CONTRACT_VERSION
from results_db.sql.result import Limits, QueryRefused, Result
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.problem import Problem
from server.sql.console import Console, problem_of
from server.sql.schemas import (
    CannedList,
    CannedParameter,
    CannedRequest,
    CannedRow,
    QueryAnswer,
    QueryLimits,
    QueryRequest,
    ViewColumn,
    ViewList,
    ViewRow,
)

# an answer is not kept under the key: asked again, the question is answered as of now
router = APIRouter(prefix="/sql", tags=["sql"], route_class=IdempotentRoute)

Format = Annotated[
    Literal["json", "csv"] | None, Query(alias="format", description="json or csv; default: as Accept says, else json")
]
Accept = Annotated[str, Header(include_in_schema=False)]
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "model": QueryAnswer,
        "content": {"text/csv": {"schema": {"type": "string"}, "example": "layer_idx,projection\n0,q\n"}},
    }
}


@router.post("", summary="One SELECT on the views", responses=_ANSWER)
async def run_sql(
    body: QueryRequest, request: Request, format_: Format = None, accept: Accept = "application/json"
) -> Response:
    """Read-only, on the views of ``GET /sql/views``. A token of scope read is enough.

    CSV disarms texts that a spreadsheet would run; a header ``X-Truncated`` says which limit cut its rows short.
    """
    console: Console = request.app.state.sql_console
    limits = console.limits(body.limits)
    result = await console.ask(request, body.query, body.params, limits)
    return _answer(result, limits, _format(format_, accept), "query")


@router.get(
    "/views", summary="The views: what a row is, and what each column means", responses={200: {"model": ViewList}}
)
def list_views() -> Response:
    """The contract, with its version."""
    items = [
        ViewRow(
            name=view.name,
            row_is=view.row_is,
            columns=[ViewColumn(name=c.name, type=c.kind, unit=c.unit, meaning=c.meaning) for c in view.columns],
        )
        for view in CONTRACT.values()
    ]
    return Answer(ViewList(version=SQL_CONTRACT_VERSION, items=items, next=None))


@router.get("/queries", summary="Questions that come with bitbudget", responses={200: {"model": CannedList}})
def list_canned_queries() -> Response:
    """Each with its SQL, to run by name or to change."""
    items = [
        CannedRow(
            name=query.name,
            title=query.title,
            sql=query.sql,
            parameters=[
                CannedParameter(name=p.name, type=p.kind, meaning=p.meaning, default=p.default)
                for p in query.parameters
            ],
        )
        for query in CANNED.values()
    ]
    return Answer(CannedList(items=items, next=None))


@router.post("/queries/{name}", summary="Run a canned query", responses=_ANSWER)
async def run_canned_query(
    name: str, body: CannedRequest, request: Request, format_: Format = None, accept: Accept = "application/json"
) -> Response:
    """As ``POST /sql``, by name. A token of scope read is enough."""
    query = CANNED.get(name)
    if query is None:
        raise Problem(404, "not-found", f"no canned query is called {name[:80]!r}: GET /api/v1/sql/queries lists them")
    try:
        values = query.values(body.params)
    except QueryRefused as error:
        raise problem_of(error) from error
    console: Console = request.app.state.sql_console
    limits = console.limits(body.limits)
    result = await console.ask(request, query.sql, values, limits)
    return _answer(result, limits, _format(format_, accept), name)


def _format(asked: str | None, accept: str) -> str:
    if asked is not None:
        return asked
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return "csv" if "text/csv" in kinds and "application/json" not in kinds else "json"


def _answer(result: Result, limits: Limits, format_: str, name: str) -> Response:
    if format_ == "json":
        held = QueryLimits(rows=limits.rows, bytes=limits.nbytes, seconds=limits.seconds)
        return Answer(
            {
                "columns": result.columns,
                "rows": result.rows,
                "truncated": result.truncated,
                "seconds": round(result.seconds, 4),
                "limits": held,
            }
        )
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"', "Vary": "Accept"}
    if result.truncated is not None:
        headers["X-Truncated"] = result.truncated
    content = csv_lines([result.columns, *result.rows]).encode(errors="replace")
    return Response(content, media_type="text/csv; charset=utf-8", headers=headers)
