"""Kinds of problems as the API shows them."""

from __future__ import annotations

from pydantic import BaseModel


class ProblemKindRow(BaseModel):
    """One kind of problem."""

    type: str
    title: str
    slug: str
    statuses: list[int]
    meaning: str
    cure: str


class ProblemKindList(BaseModel):
    """Every kind; the list is short and has one page."""

    items: list[ProblemKindRow]
    next: None
