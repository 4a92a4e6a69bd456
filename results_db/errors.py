"""What results_db raises on purpose."""

from __future__ import annotations


class ResultsDbError(Exception):
    """Root of every error that results_db raises on purpose."""


class NotFound(ResultsDbError):
    """A row was asked for by an id that does not exist."""

    def __init__(self, noun: str, id_: str) -> None:
        super().__init__(f"no {noun} has the id {id_!r}")
        self.noun = noun
        self.id = id_


class WrongState(ResultsDbError):
    """A transition was asked for that the job's state does not allow."""


class LeaseLost(ResultsDbError):
    """The lease token no longer holds: another attempt owns the job, so this result must be thrown away."""


class PathNotUsable(ResultsDbError):
    """A path that the file system cannot even look up: a NUL, a name too long, a loop of links, no such home."""

    code = "path-not-usable"

    def __init__(self, path: str, why: object) -> None:
        super().__init__(f"{path[:200]!r} is no usable path ({why}): give the path of a folder or file that exists")
        self.path = path


class PathNotAllowed(ResultsDbError):
    """A path lies outside the configured model roots."""

    code = "path-not-allowed"

    def __init__(self, path: str, roots: list[str]) -> None:
        super().__init__(
            f"{path} lies outside the allowed folders ({', '.join(roots)}): move it there or add its folder to "
            "BITBUDGET_MODEL_ROOTS"
        )
        self.path = path


class SchemaTooNew(ResultsDbError):
    """A later release has migrated the database: this code cannot know what it holds."""

    def __init__(self, present: str, known: str) -> None:
        super().__init__(
            f"the database has schema {present}, and this release knows schemas up to {known}: run the release that "
            "migrated it, or restore a backup from before"
        )
        self.present = present
