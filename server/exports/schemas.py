"""Exports as the API describes them."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ExportRow(BaseModel):
    """One table that can be exported."""

    name: str
    description: str
    columns: dict[str, str] = Field(description="name → int, float, str, bool, datetime or json; `?` = may be null")
    filters: list[str]


class ExportList(BaseModel):
    """Every export; the list is short and has one page."""

    items: list[ExportRow]
    next: None
