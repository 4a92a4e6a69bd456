"""The loops of a server whose database is away for a while."""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy.exc import DBAPIError

from tests.service import Service


class PatientService(Service):
    """As the server's loop, whose turns go on while the database does not answer or refuses."""

    def step(self) -> None:
        with suppress(DBAPIError):
            super().step()
