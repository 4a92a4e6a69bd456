"""/api/v1/exports."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from results_db import Database
from server.exports.batches import Rows
from server.exports.catalogue import EXPORTS, Export
from server.exports.filters import ExportFilter, Filter, filter_names
from server.exports.formats import MEDIA_TYPES, WRITERS, Format
from server.exports.parquet import check_parquet
from server.exports.provenance import HEADER, as_header, provenance
from server.exports.schemas import ExportList, ExportRow
from server.kit.answers import Answer
from server.kit.problem import Problem
from server.kit.units import AppDatabase

router = APIRouter(tags=["exports"])

FormatQuery = Annotated[Format, Query(alias="format", description="form of the file")]
_FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file, streamed.",
        "headers": {HEADER: {"schema": {"type": "string"}, "description": "schema and provenance as JSON"}},
    }
}


@router.get("/exports", summary="What can be exported", responses={200: {"model": ExportList}})
def list_exports() -> Response:
    """Every table of results, with its columns and the filters that it knows."""
    return Answer({"items": [_row(export) for export in EXPORTS.values()], "next": None})


@router.get(
    "/exports/{export}", summary="All rows that match, as a file", response_class=StreamingResponse, responses=_FILE
)
def export_rows(
    request: Request,
    database: AppDatabase,
    only: Filter,
    export: Annotated[str, Path(examples=["measurements"])],
    format_: FormatQuery = Format.JSONL,
) -> Response:
    """The rows that are there when the export begins, by id; what is added meanwhile is left out, and a row that is
    changed meanwhile comes as it is when it is read.

    JSON lines begin with a record ``{"schema": …}`` of schema and provenance; Parquet has it in its metadata under
    ``bitbudget``; all have it in the header ``X-Bitbudget-Export``. In CSV null is an empty cell, objects are JSON, and
    texts that a spreadsheet would run begin with an apostrophe.
    """
    if export not in EXPORTS:
        raise Problem(404, "not-found", f"there is no export {export[:80]!r}: choose out of {', '.join(EXPORTS)}")
    return _stream(request, database, EXPORTS[export], only, format_)


@router.get(
    "/measurements/export",
    summary="The same as /exports/measurements",
    response_class=StreamingResponse,
    responses=_FILE,
    deprecated=True,
)
def export_measurements(
    request: Request, database: AppDatabase, only: Filter, format_: FormatQuery = Format.JSONL
) -> Response:
    """The address that exports had first."""
    return _stream(request, database, EXPORTS["measurements"], only, format_)


def _stream(request: Request, database: Database, export: Export, only: ExportFilter, format_: Format) -> Response:
    if format_ == Format.PARQUET:
        check_parquet()
    rows = Rows.now(database, export, only.conditions(export))
    schema = provenance(rows, only.given(), request.app.version)
    return StreamingResponse(
        WRITERS[format_](rows, schema),
        media_type=MEDIA_TYPES[format_],
        headers={
            "Content-Disposition": f'attachment; filename="{export.name}.{format_}"',
            "Cache-Control": "no-store",
            HEADER: as_header(schema),
        },
    )


def _row(export: Export) -> ExportRow:
    return ExportRow(
        name=export.name,
        description=export.description,
        columns={name: str(kind) for name, kind in export.columns.items()},
        filters=list(filter_names(export)),
    )
