"""ArtefactStore: where finished calibrations and packed models lie: a folder, or any URL that fsspec knows.

A row of ``artefacts`` holds the URI: an absolute path as long as the store is a folder, else a URL. Whoever reads it
asks ``fetch`` for a local folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from results_db.locks import LOCK_SUFFIX, FileLock
from worker.errors import MissingInput
from worker.files import PART_SUFFIX, artefact_bytes, move_folder
from worker.remote import RemoteFolder, is_remote
from worker.workspaces import Workspaces, clean_stale

_SHARE_IT = (
    "hosts share artefacts through a folder under one path, or an object store: set BITBUDGET_ARTEFACTS_URL on each"
)


def _carry_on() -> None:
    """The default check: nothing asks to stop."""


class ArtefactStore:
    """Workspaces, finished artefacts, and local copies of remote ones.

    Args:
        url: an absolute path, or an fsspec URL (``s3://bucket/prefix``).
        var_dir: this host's own folder; workspaces and copies of remote artefacts lie in it.
        check: called between files and while waiting; raises where somebody wants the job to stop.
    """

    def __init__(self, url: str, var_dir: Path, *, check: Callable[[], None] = _carry_on) -> None:
        self.url = url
        self.workspaces = Workspaces(var_dir / "work")
        self.cache = var_dir / "cache" / "artefacts"
        self._check = check
        #: shared: while this process lives, nobody removes a copy that it was given
        self._in_use: dict[str, FileLock] = {}

    def workspace(self, kind: str, key: str) -> Path:
        """A local folder that survives a kill: the same kind and key find the same folder and what lies in it.

        Waits while another process works under that key: look afterwards whether it has recorded the result. The
        folder is this process's until it publishes it or ends.

        Raises:
            StoreNotUsable, MissingInput: a remote store cannot be used from here; said before any work is done.
            StoreUnreachable: it does not answer; may be tried again.
        """
        if is_remote(self.url):
            RemoteFolder(self.url).announce()
        return self.workspaces.open(kind, key, check=self._check)

    def publish(self, folder: Path, kind: str, id: str) -> str:
        """Move or upload a finished folder; its URI. The folder is gone afterwards.

        A reader sees the whole artefact or none of it. The same kind and id a second time replace the first.

        Raises:
            MissingInput: a remote store refuses the upload.
            StoreUnreachable: it does not answer; the folder stays, and the upload may be tried again.
            OSError: the disk is full, or not writable.
        """
        if is_remote(self.url):
            remote = RemoteFolder(self.url).child(kind).child(id)
            remote.upload(folder, check=self._check)
            self._keep(folder, remote.url)
            uri = remote.url
        else:
            target = Path(self.url) / kind / id
            move_folder(folder, target)
            uri = str(target)
        self.workspaces.close(folder)
        return uri

    def fetch(self, uri: str) -> Path:
        """A local path of the artefact, read-only by convention; a remote one is copied here once and verified.

        Raises:
            MissingInput: it cannot be seen from this host; names host, URI, reason and cure.
            StoreUnreachable: the store does not answer; may be tried again.
        """
        if not is_remote(uri):
            path = Path(uri)
            if not path.exists():
                raise MissingInput(
                    f"this worker's host {socket.gethostname()} cannot see the artefact {uri}: there is no such path "
                    f"here. Submit the job that makes it again, or run this job where it lies; several {_SHARE_IT}"
                )
            return path
        folder = self._cached(uri)
        if uri not in self._in_use:
            self._in_use[uri] = self._copy(uri, folder)
        # age counts from the last use
        os.utime(folder)
        return folder

    def holds(self, uri: str, nbytes: int) -> bool:
        """Whether the whole artefact is there, with so many bytes in its safetensors files; reads no contents.

        Raises:
            StoreUnreachable: the store does not answer.
        """
        if is_remote(uri):
            return RemoteFolder(uri).nbytes() == nbytes
        path = Path(uri)
        return path.exists() and artefact_bytes(path) == nbytes

    @staticmethod
    def clean(var_dir: Path, days: float) -> list[Path]:
        """Remove workspaces, and copies of remote artefacts, that nobody holds or has touched for so many days."""
        return [
            path for root in (var_dir / "work", var_dir / "cache" / "artefacts") for path in clean_stale(root, days)
        ]

    def _copy(self, uri: str, folder: Path) -> FileLock:
        """See to it that the copy is there; a lock that keeps it. One process downloads, any number read."""
        path = folder.with_suffix(LOCK_SUFFIX)
        while True:
            lock = FileLock.acquire(path, shared=True, check=self._check)
            if folder.exists():
                return lock
            lock.release()
            writer = FileLock.try_acquire(path)
            if writer is None:
                continue  # another process got here first: its download is waited for above
            try:
                if not folder.exists():
                    part = folder.with_suffix(PART_SUFFIX)
                    RemoteFolder(uri).download(part, check=self._check)
                    move_folder(part, folder)
            finally:
                writer.release()

    def _keep(self, folder: Path, uri: str) -> None:
        """What was uploaded need not be downloaded here again."""
        cached = self._cached(uri)
        lock = FileLock.try_acquire(cached.with_suffix(LOCK_SUFFIX))
        if lock is None:
            # an earlier copy of the same artefact is in use
            shutil.rmtree(folder)
            return
        try:
            move_folder(folder, cached)
        finally:
            lock.release()

    def _cached(self, uri: str) -> Path:
        return self.cache / hashlib.sha256(uri.encode()).hexdigest()[:32]
