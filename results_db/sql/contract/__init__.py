"""The contract: every view that stays, and what each of its columns means.

Between two releases columns are only added, at a view's end, and views are only added; that leaves the version as it
is. Whatever else changes (a column that goes, moves, or means something new) raises ``SQL_CONTRACT_VERSION`` and is
told in the changelog.
"""

from __future__ import annotations

from results_db.sql.contract import chosen, measured, ran
from results_db.sql.contract.columns import Column, Kind, View

SQL_CONTRACT_VERSION = 1

#: name -> view, what was measured first
CONTRACT: dict[str, View] = {view.name: view for view in (*measured.VIEWS, *chosen.VIEWS, *ran.VIEWS)}

__all__ = ["CONTRACT", "SQL_CONTRACT_VERSION", "Column", "Kind", "View"]
