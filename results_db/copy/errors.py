"""Why a database is not copied."""

from __future__ import annotations

from results_db.errors import ResultsDbError


class CannotCopy(ResultsDbError):
    """Nothing was copied, and the target is as it was; ``cure`` says what to do."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self.cure = cure
