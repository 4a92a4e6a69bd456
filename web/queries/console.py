"""What the SQL page offers: the questions that come with bitbudget, and the views with their columns."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from results_db.sql.canned import CANNED
from results_db.sql.contract import CONTRACT, SQL_CONTRACT_VERSION, View


@dataclass(frozen=True, slots=True)
class Question:
    """A canned query as an option of the list carries it."""

    name: str
    title: str
    sql: str
    #: JSON: [{name, kind, meaning, default}, …]
    parameters: str


@dataclass(frozen=True, slots=True)
class ConsolePage:
    """Everything on the page but the answers."""

    version: int
    views: tuple[View, ...]
    questions: tuple[Question, ...]


def console_page() -> ConsolePage:
    """The same for everybody: it needs no database."""
    questions = tuple(
        Question(query.name, query.title, query.sql, json.dumps([asdict(p) for p in query.parameters]))
        for query in CANNED.values()
    )
    return ConsolePage(SQL_CONTRACT_VERSION, tuple(CONTRACT.values()), questions)
