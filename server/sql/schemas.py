"""What the console is asked, and what it answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Value = str | int | float | bool | None
Params = Annotated[dict[str, Value], Field(max_length=50)]


class QueryLimits(BaseModel):
    """How much the query may cost; the server has limits of its own, and the smaller one holds."""

    model_config = ConfigDict(extra="forbid")

    rows: Annotated[int, Field(ge=1)] = 1000
    #: of the answer's rows as JSON
    bytes: Annotated[int, Field(ge=1)] = 5_000_000
    #: default: as many as the server allows
    seconds: Annotated[float, Field(gt=0)] | None = None


class CannedRequest(BaseModel):
    """Parameters of a canned query; those left out have their defaults."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"params": {"bits": 2, "limit": 10}}]})

    params: Params = Field(default_factory=dict)
    limits: QueryLimits = Field(default_factory=QueryLimits)


class QueryRequest(CannedRequest):
    """One SELECT on the views, with values of its ``:name`` parameters."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "query": "SELECT layer_idx, projection, calibration_weighted_error FROM errors WHERE b_q = :b_q",
                    "params": {"b_q": 2},
                    "limits": {"rows": 100},
                }
            ]
        },
    )

    query: Annotated[str, Field(max_length=100_000)]


class QueryAnswer(BaseModel):
    """Columns and rows; two columns may have one name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "columns": ["layer_idx", "projection", "calibration_weighted_error"],
                    "rows": [[0, "q", 0.0731], [0, "k", 0.0688]],
                    "truncated": None,
                    "seconds": 0.041,
                    "limits": {"rows": 100, "bytes": 5000000, "seconds": 1.5},
                }
            ]
        }
    )

    columns: list[str]
    rows: list[list[Any]]
    #: which limit cut the rows short; null = these are all
    truncated: Literal["rows", "bytes"] | None
    seconds: float
    #: that held
    limits: QueryLimits


class ViewColumn(BaseModel):
    """One column of a view."""

    name: str
    #: "time" is UTC; "boolean" is 0 or 1 where the database is SQLite
    type: Literal["text", "integer", "real", "boolean", "time"]
    unit: str | None
    meaning: str


class ViewRow(BaseModel):
    """One view of the contract."""

    name: str
    #: ends the sentence "a row is …"
    row_is: str
    columns: list[ViewColumn]


class ViewList(BaseModel):
    """The contract. Between releases views and columns are only added; ``version`` is raised by any other change."""

    version: int
    items: list[ViewRow]
    next: None


class CannedParameter(BaseModel):
    """A parameter of a canned query."""

    name: str
    type: Literal["text", "integer", "time"]
    meaning: str
    #: of a time: hours before now
    default: str | int | None


class CannedRow(BaseModel):
    """A question and its SQL."""

    name: str
    title: str
    sql: str
    parameters: list[CannedParameter]


class CannedList(BaseModel):
    """The questions that come with bitbudget."""

    items: list[CannedRow]
    next: None
