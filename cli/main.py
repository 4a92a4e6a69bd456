"""Entry of `bitbudget`: the commands, and how their errors are told."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from cli.commands import db, jobs, measurements, queue, studies
from cli.commands.allocate import allocate, frontier
from cli.commands.certificate import certificate, verify
from cli.commands.demo import demo
from cli.commands.doctor import doctor
from cli.commands.down import down
from cli.commands.export import export
from cli.commands.gc import gc
from cli.commands.plan import plan
from cli.commands.sql import sql
from cli.commands.submit import submit
from cli.commands.tail import tail
from cli.commands.tokens import app as tokens_app
from cli.commands.up import up
from cli.commands.wait import wait
from cli.credential import use_token_file
from cli.errors import CliError, ExitCode
from cli.output import err, out
from results_db.packages import own_version

HELP = """Spend a memory budget where a language model feels it most.

\b
First steps:
  bitbudget demo                              the whole study on the committed model
  bitbudget up                                Redis, server and worker until Ctrl-C
  bitbudget plan configs/demo.yaml            what a study would cost, and whether it fits
  bitbudget submit configs/demo.yaml --wait   a study of your own
  bitbudget sql --views                       what the database can be asked
  bitbudget allocate "3 bpw" --model PATH     where to spend the bytes of a measured model
"""

EPILOG = """\b
Exit codes:
  0    done
  1    a job or study failed or was cancelled; a plan does not fit; a check found something
  2    bad input, or refused by the server
  3    no server answers, or it fails
  4    a NO-GO stopped the study
  5    a part of the stack did not start or stay up
  6    the time of --timeout ran out
  130  interrupted
"""


class Commands(TyperGroup):
    """The commands; what they raise on purpose is told in words, and becomes the exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except CliError as error:
            _tell(error, as_json="--json" in sys.argv)
            raise typer.Exit(error.code) from error
        except KeyboardInterrupt:
            err().print("interrupted")
            raise typer.Exit(ExitCode.INTERRUPTED) from None


app = typer.Typer(
    name="bitbudget",
    cls=Commands,
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    up,
    down,
    demo,
    doctor,
    gc,
    plan,
    submit,
    wait,
    tail,
    sql,
    export,
    allocate,
    frontier,
    certificate,
    verify,
)
for command in _COMMANDS:
    app.command()(command)
app.add_typer(jobs.app, name="jobs")
app.add_typer(db.app, name="db")
app.add_typer(studies.app, name="studies")
app.add_typer(measurements.app, name="measurements")
app.add_typer(queue.app, name="queue")
app.add_typer(queue.workers_app, name="workers")
app.add_typer(tokens_app, name="tokens")


def _tell_version(asked: bool) -> None:
    if asked:
        out().print(f"bitbudget {own_version()}", highlight=False)
        raise typer.Exit


@app.callback()
def _bitbudget(
    token_file: Annotated[
        str | None,
        typer.Option("--token-file", metavar="FILE", help="File with the server's token. Default: BITBUDGET_TOKEN."),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Print the version and stop.")
    ] = False,
) -> None:
    use_token_file(token_file)


def main() -> None:
    """Entry point of ``bitbudget``; exits with one of ``ExitCode``."""
    app(prog_name="bitbudget")


def _tell(error: CliError, *, as_json: bool) -> None:
    if as_json:
        body = getattr(error, "body", None)
        record = {"message": str(error), "cure": error.cure, "exit_code": int(error.code), "problem": body}
        sys.stderr.write(json.dumps({"error": record}, ensure_ascii=False) + "\n")
        return
    console = err()
    console.print(Text.assemble(("error: ", "bold red"), str(error)))
    if error.cure:
        console.print(Text.assemble(("cure:  ", "bold"), error.cure))


if __name__ == "__main__":
    main()
