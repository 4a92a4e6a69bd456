"""A backup with its artefacts: a tar of the database's backup and the folders that its rows name.

Only folders on this host go in; artefacts in an object store stay there, and their rows still name them.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sqlalchemy import select, update

from results_db.copy.errors import CannotCopy
from results_db.engine import Database
from results_db.tables import Artefact

#: names inside the tar
DATABASE = "bitbudget.db"
_FOLDER = "artefacts"
#: where artefacts lie until they are whole, below the folder of the others
_STAGING = ".restoring"


@dataclass(frozen=True, slots=True)
class Packed:
    """What became of the artefacts of a backup."""

    #: URIs in the tar
    packed: tuple[str, ...]
    #: URIs in an object store
    remote: tuple[str, ...]
    #: URIs that this host cannot see
    missing: tuple[str, ...]


def pack(backup: Path, tar_path: Path, *, say: Callable[[str], None] = lambda uri: None) -> Packed:
    """Put a backup's file and the artefacts that its rows name into ``tar_path``, which must be new."""
    with closing(sqlite3.connect(backup)) as connection:
        uris = [row[0] for row in connection.execute("SELECT uri FROM artefacts ORDER BY id")]
    remote = tuple(uri for uri in uris if "://" in uri)
    local = [uri for uri in dict.fromkeys(uris) if "://" not in uri]
    missing = tuple(uri for uri in local if not Path(uri).exists())
    part = tar_path.with_name(f"{tar_path.name}.part")
    part.unlink(missing_ok=True)  # of one that was killed
    try:
        # its owner's alone, as the backup in it is
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
            tar.add(backup, DATABASE)
            for uri in local:
                if uri not in missing:
                    say(uri)
                    tar.add(uri, str(_place(uri)))
        part.replace(tar_path)
    finally:
        part.unlink(missing_ok=True)
    return Packed(tuple(uri for uri in local if uri not in missing), remote, missing)


def is_packed(path: Path) -> bool:
    """Whether a file is a backup with artefacts."""
    return tarfile.is_tarfile(path)


def unpack_database(tar_path: Path, folder: Path) -> Path:
    """The database's backup out of the tar, in ``folder``.

    Raises:
        CannotCopy: it holds none.
    """
    with tarfile.open(tar_path) as tar:
        try:
            member = tar.getmember(DATABASE)
        except KeyError:
            raise CannotCopy(f"{tar_path} holds no {DATABASE}", "name a file of `bitbudget db backup`") from None
        tar.extract(member, folder, filter="data")
    return folder / DATABASE


def unpack_artefacts(tar_path: Path, root: Path) -> int:
    """Put the artefacts below ``root``, and leave those alone that are there; how many came out of the tar.

    Each gets its name when it is whole: a restore that is killed leaves no half artefact that the next one would keep.

    Raises:
        tarfile.FilterError: a member leads out of the folder.
    """
    staging = root / _STAGING
    if staging.exists():  # of a restore that was killed
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    came = set()
    with tarfile.open(tar_path) as tar:
        there: dict[PurePosixPath, bool] = {}
        for member in tar:
            path = PurePosixPath(member.name)
            if path.parts[:1] != (_FOLDER,) or len(path.parts) < 3:
                continue
            inside = PurePosixPath(*path.parts[1:])
            artefact = PurePosixPath(*inside.parts[:2])
            if there.setdefault(artefact, (root / artefact).exists()):
                continue
            member.name = str(inside)
            tar.extract(member, staging, filter="data")
            came.add(artefact)
    for artefact in came:
        (root / artefact).parent.mkdir(exist_ok=True)
        (staging / artefact).rename(root / artefact)
    shutil.rmtree(staging)
    return len(came)


def point_to(root: Path) -> Callable[[Database], None]:
    """Let the rows of local artefacts name ``root``: for :func:`restore_database`."""

    def change(source: Database) -> None:
        with source.write() as session:
            for id_, uri in session.execute(select(Artefact.id, Artefact.uri)).all():
                if "://" not in uri:
                    moved = root / _place(uri).relative_to(_FOLDER)
                    session.execute(update(Artefact).where(Artefact.id == id_).values(uri=str(moved)))

    return change


def _place(uri: str) -> PurePosixPath:
    """Where an artefact lies in the tar: its kind's folder and its own."""
    return PurePosixPath(_FOLDER, *Path(uri).parts[-2:])
