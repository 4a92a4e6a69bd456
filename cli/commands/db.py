"""`bitbudget db`: upgrade, copy, back up and restore the database itself, without a server."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cli.database import is_absent, open_database, shown
from cli.errors import CliError
from cli.options import JsonOption, settings
from cli.output import duration, err, out, print_json, say, table
from results_db import Database
from results_db.copy import CopyReport, Progress, copy_database
from results_db.copy.artefacts import is_packed, pack, point_to, unpack_artefacts, unpack_database
from results_db.copy.backup import backup_database, restore_database
from results_db.copy.unused import unused
from results_db.gc import mark_moved
from results_db.migrate import downgrade, head_revision, present_revision, upgrade

app = typer.Typer(help="The database itself: its schema, copies, backups.", no_args_is_help=True)

DatabaseOption = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="Default: BITBUDGET_DATABASE_URL, else ./var's.")
]
#: a line of progress, where there is no terminal, every so many seconds
_LINE_EVERY_S = 5.0


@app.command("current")
def current(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """The schema that the database has, and the one that this release needs."""
    with open_database(database) as opened:
        present, head = None if is_absent(opened.url) else present_revision(opened), head_revision()
        if as_json:
            print_json({"database": shown(opened), "revision": present, "head": head, "current": present == head})
        else:
            say(f"{shown(opened)}: schema {present or 'none'}, this release needs {head}")


@app.command("upgrade")
def upgrade_(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Bring the database to the newest schema. A server does the same when it starts.

    Processes that upgrade at once wait for each other; a crash in the middle leaves the old schema.

    \b
    Examples:
      bitbudget db upgrade
      BITBUDGET_DATABASE_URL=postgresql+psycopg://bitbudget@host/bitbudget bitbudget db upgrade
    """
    with open_database(database) as opened:
        before = present_revision(opened)
        upgrade(opened)
        _tell_schema(opened, before, as_json)


@app.command("downgrade")
def downgrade_(
    revision: Annotated[str, typer.Argument(help='For example "0004"; "base" removes everything.')],
    database: DatabaseOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="What the older schema cannot hold is lost: do it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Go back to an older schema, for an older release. Stop server and workers, and make a backup first."""
    if not yes:
        raise CliError(
            f"going back to {revision} loses what that schema cannot hold",
            cure="make a backup (bitbudget db backup FILE), then add --yes",
        )
    with open_database(database, there=True) as opened, unused(opened):
        before = present_revision(opened)
        downgrade(opened, revision)
        _tell_schema(opened, before, as_json)


@app.command("copy")
def copy(
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="URL", envvar="BITBUDGET_COPY_TO", help="An empty database. (BITBUDGET_COPY_TO hides it.)"
        ),
    ],
    from_: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="Default: BITBUDGET_DATABASE_URL, else ./var's.")
    ] = None,
    mend: Annotated[
        bool, typer.Option("--mend", help="Replace values that the target cannot hold (NaN in JSON, NUL in text).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Move to another database: SQLite to PostgreSQL, or back. Ids, times and numbers arrive as they are.

    Server and workers must be stopped. Every table's rows are read again at the target and compared by count and by a
    hash of their content. All of it is one transaction: a copy that is killed leaves the target empty, and is begun
    again. Artefacts are not moved: their rows name the same folders as before.

    A password belongs into ~/.pgpass, PGPASSWORD or BITBUDGET_COPY_TO: everybody can read a command line.

    \b
    Examples:
      bitbudget db copy --to postgresql+psycopg://bitbudget@host/bitbudget
      bitbudget db copy --from postgresql+psycopg://bitbudget@host/bitbudget --to sqlite:////var/lib/bitbudget.db
    """
    with open_database(from_, there=True) as source, open_database(to) as target:
        with unused(source), unused_if_made(target), _progress() as tell:
            report = copy_database(source, target, hold=True, mend=mend, say=tell)
            # the old database knows nothing of what will be needed at the new one: gc then refuses it
            mark_moved(source, shown(target))
        if as_json:
            print_json({"from": shown(source), "to": shown(target), **_report(report)})
            return
        _show(report)
        say(f"{report.n_rows} rows copied and compared in {duration(report.seconds)}: {shown(target)} holds the same")
        say(f"now: export BITBUDGET_DATABASE_URL={shown(target)}")
        say("the old database is as it was: keep it until you are sure, and start nothing on it")


@app.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(help="A new file.")],
    with_artefacts: Annotated[
        bool, typer.Option("--with-artefacts", help="A tar with the calibrations and packed models as well.")
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one moment of the database to a file, while server and workers go on.

    The file is a SQLite database, whichever database it is of: `db restore` fills either from it, and sqlite3 reads it.

    \b
    Examples:
      bitbudget db backup backups/monday.db
      bitbudget db backup --with-artefacts backups/monday.tar
    """
    if file.exists():
        raise CliError(f"{file} exists", cure="name a new file: a backup never replaces another")
    with (
        open_database(database, there=True) as source,
        tempfile.TemporaryDirectory(dir=_folder_of(file)) as folder,
        _progress() as tell,
    ):
        path = Path(folder) / "bitbudget.db" if with_artefacts else file
        report = backup_database(source, path, say=tell)
        packed = pack(path, file) if with_artefacts else None
    facts: dict[str, Any] = {
        "file": str(file),
        "nbytes": file.stat().st_size,
        "revision": report.revision,
        "n_rows": report.n_rows,
        "rows": report.counts,
        "artefacts": asdict(packed) if packed else None,
    }
    if as_json:
        print_json(facts)
        return
    say(f"{file}: schema {report.revision}, {report.n_rows} rows, {facts['nbytes']} bytes")
    if packed is None:
        say("artefacts (calibrations, packed models) are not in it: --with-artefacts adds them")
        return
    say(f"{len(packed.packed)} artefacts are in it")
    for word, uris in (("stay in their store", packed.remote), ("cannot be seen from here", packed.missing)):
        if uris:
            say(f"{len(uris)} artefacts {word}: {', '.join(uris[:3])}{' …' if len(uris) > 3 else ''}")


@app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="What `db backup` wrote.", exists=True, dir_okay=False)],
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fill an empty database from a backup, older schemas brought up to date; counts and contents are compared.

    Artefacts in it go to BITBUDGET_ARTEFACTS_URL, which must be a folder, and their rows name it; those that are there
    already stay.

    \b
    Example:
      BITBUDGET_VAR_DIR=/var/lib/new bitbudget db restore backups/monday.db
    """
    chosen = settings()
    chosen.var_dir.mkdir(parents=True, exist_ok=True)
    with open_database(database) as target, tempfile.TemporaryDirectory(dir=chosen.var_dir) as folder:
        n_artefacts, path = 0, file
        options: dict[str, Callable[[Database], None]] = {}
        if is_packed(file):
            root = Path(chosen.artefacts_url)
            if "://" in chosen.artefacts_url:
                raise CliError(
                    f"{file} holds artefacts, and BITBUDGET_ARTEFACTS_URL names an object store",
                    cure="restore with BITBUDGET_ARTEFACTS_URL as a folder, and upload it with the store's own tools",
                )
            path = unpack_database(file, Path(folder))

            def change(source: Database) -> None:
                nonlocal n_artefacts
                # before their rows: a row must not name what is not there
                n_artefacts = unpack_artefacts(file, root)
                point_to(root)(source)

            options["change"] = change
        with unused_if_made(target), _progress() as tell:
            report = restore_database(path, target, scratch=Path(folder), say=tell, **options)
        if as_json:
            print_json({"file": str(file), "to": shown(target), "n_artefacts": n_artefacts, **_report(report)})
            return
        _show(report)
        say(f"{report.n_rows} rows restored and compared: {shown(target)}")
        if options:
            say(f"{n_artefacts} artefacts restored to {chosen.artefacts_url}")


def _tell_schema(database: Database, before: str | None, as_json: bool) -> None:
    after = present_revision(database)
    if as_json:
        print_json({"database": shown(database), "from": before, "to": after})
    else:
        say(f"{shown(database)}: schema {before or 'none'} → {after or 'none'}")


@contextmanager
def unused_if_made(database: Database) -> Iterator[None]:
    """As ``unused``, where the database has tables at all."""
    if present_revision(database) == head_revision():
        with unused(database):
            yield
    else:
        yield


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Tells of a copy: a bar on a terminal, else a line every few seconds."""
    if not err().is_terminal:
        told = time.monotonic()

        def line(progress: Progress) -> None:
            nonlocal told
            if time.monotonic() - told >= _LINE_EVERY_S:
                told = time.monotonic()
                share = progress.done / progress.total
                say(f"{progress.step} {progress.table}: {share:.0%}, {duration(progress.eta_s)} left")

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Bar(*columns, TimeRemainingColumn(), console=err(), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda p: bar.update(task, description=f"{p.step} {p.table}", completed=p.done, total=p.total)


def _report(report: CopyReport) -> dict[str, Any]:
    return {
        "revision": report.revision,
        "n_rows": report.n_rows,
        "seconds": round(report.seconds, 3),
        "tables": [asdict(each) for each in report.tables],
    }


def _show(report: CopyReport) -> None:
    rows = [(each.name, each.n_rows, each.content_hash[:16], each.n_mended or None) for each in report.tables]
    out().print(table(("table", "rows", "content", "mended"), rows))


def _folder_of(file: Path) -> Path:
    folder = file.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder
