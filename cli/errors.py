"""What the command line raises on purpose, and the exit codes that scripts may rely on."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command; `bitbudget --help` lists them."""

    OK = 0
    FAILED = 1  #: a job or study failed, was cancelled, or is dead; a plan does not fit
    USAGE = 2  #: bad input: options, a file, parameters that the server refused, a query that is not allowed
    UNREACHABLE = 3  #: no server answers
    NO_GO = 4  #: a gate said NO-GO and stopped the study
    STACK = 5  #: a part of the embedded stack did not start or did not stay up
    TIMEOUT = 6  #: what was waited for did not end in the time given
    INTERRUPTED = 130  #: Ctrl-C


class CliError(Exception):
    """A message for people, its cure, and the exit code. Shown without a traceback."""

    def __init__(self, message: str, *, cure: str | None = None, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.cure = cure
        self.code = code


class Unreachable(CliError):
    """No server answers at the URL."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"no bitbudget server answers at {url} ({reason})",
            cure="start one with `bitbudget up`, or name another with --server URL or BITBUDGET_SERVER",
            code=ExitCode.UNREACHABLE,
        )


class StackError(CliError):
    """A part of the embedded stack did not start or did not stay up."""

    def __init__(self, message: str, *, cure: str | None = None) -> None:
        super().__init__(message, cure=cure, code=ExitCode.STACK)
