"""RemoteFolder: one folder behind an fsspec URL, uploaded and downloaded whole.

Files go up first, the manifest with their names, sizes and hashes last: a folder without a manifest is no artefact.
The drivers (s3fs for ``s3://``, gcsfs for ``gs://``) are not installed by default; they take their credentials and
endpoints from the environment (``AWS_…``, ``FSSPEC_S3_…``), never from the URL.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rq.timeouts import JobTimeoutException

from compress_core.errors import CompressCoreError
from worker.errors import MissingInput, StoreNotUsable, StoreUnreachable, WorkerError
from worker.files import files_below

MANIFEST = "bitbudget-manifest.json"
#: user:password@ in URLs, and what signed URLs carry
_SECRETS = re.compile(r"(?<=//)[^/@\s]+@|(?i:(signature|credential|token|secret|key)[a-z0-9_-]*=)[^&\s\"']+")

#: each job is a process of its own
_FORGETFUL = ("memory", "data", "filecache", "simplecache", "blockcache")
_READ_ONLY = ("http", "https", "github", "zip", "tar", "git", "reference", "gist")
#: what drivers raise where another try would end alike
_REFUSALS = (PermissionError, FileNotFoundError, IsADirectoryError, NotImplementedError, ValueError)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a manifest; ``name`` is relative, with slashes."""

    name: str
    nbytes: int
    sha256: str


def is_remote(uri: str) -> bool:
    """Whether a URI names something that is no path of this host."""
    return "://" in uri


def check_driver(url: str) -> None:
    """See whether the driver of a URL can be imported; opens no connection, so that forking stays safe.

    Raises:
        StoreNotUsable: an unknown protocol, or a package that is not installed; names it.
    """
    from fsspec import get_filesystem_class
    from fsspec.registry import known_implementations

    protocol = url.split("://", 1)[0]
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        hint = known_implementations.get(protocol, {}).get("err", str(error))
        raise StoreNotUsable(f"{url}: {protocol}:// has no driver on host {_host()}: {hint}") from error
    except ValueError as error:
        raise StoreNotUsable(
            f"{url}: no driver knows {protocol}://. Write a path, or a URL such as s3://bucket/folder, "
            "gs://bucket/folder or sftp://host/folder"
        ) from error


def check_store(url: str) -> None:
    """See whether workers can keep artefacts at a URL, as far as that shows without a connection.

    Raises:
        StoreNotUsable: no driver, or one that forgets or cannot write.
    """
    check_driver(url)
    protocol = url.split("://", 1)[0]
    if protocol in _FORGETFUL:
        raise StoreNotUsable(f"{url}: what is written to {protocol}:// ends with the job that wrote it")
    if protocol in _READ_ONLY:
        raise StoreNotUsable(f"{url}: {protocol}:// can only be read")


class RemoteFolder:
    """A folder behind a URL.

    Raises:
        StoreNotUsable: no driver for its protocol.
    """

    def __init__(self, url: str) -> None:
        check_driver(url)
        self.url = url.rstrip("/")

    def child(self, name: str) -> RemoteFolder:
        """A folder in this one."""
        return RemoteFolder(f"{self.url}/{name}")

    def announce(self) -> None:
        """Write this host's name into the store: shows that it can be written to before hours of work are spent.

        Raises:
            MissingInput: it may not be written to, or does not exist.
            StoreUnreachable: it does not answer.
        """
        with self._naming("cannot write to"):
            self._fs().pipe_file(f"{self.url}/hosts/{_host()}", b"")

    def upload(self, folder: Path, *, check: Callable[[], None]) -> None:
        """Copy a local folder here; the manifest is written last.

        Raises:
            MissingInput: refused.
            StoreUnreachable: no answer.
        """
        entries = []
        with self._naming("cannot write"):
            fs = self._fs()
            if fs.exists(f"{self.url}/{MANIFEST}"):
                # replaced: it must not vouch for the files of two tries
                fs.rm_file(f"{self.url}/{MANIFEST}")
            for path in files_below(folder):
                check()
                local, remote = folder / path, f"{self.url}/{path.as_posix()}"
                entry = FileEntry(path.as_posix(), local.stat().st_size, _sha256(local))
                _parent(fs, remote)
                fs.put_file(str(local), remote)
                entries.append(entry)
            body = json.dumps({"files": [asdict(entry) for entry in entries]}, indent=1)
            fs.pipe_file(f"{self.url}/{MANIFEST}", body.encode())

    def manifest(self) -> list[FileEntry] | None:
        """The files that lie here; None where there is no (whole) artefact.

        Raises:
            MissingInput: refused, or the manifest is no manifest.
            StoreUnreachable: no answer.
        """
        with self._naming("cannot read"):
            try:
                body = self._fs().cat_file(f"{self.url}/{MANIFEST}")
            except FileNotFoundError:
                return None
        try:
            return [FileEntry(**values) for values in json.loads(body)["files"]]
        except (ValueError, TypeError, KeyError) as error:
            raise MissingInput(
                f"{self.url}/{MANIFEST} is damaged ({error}): submit the job that makes it again"
            ) from error

    def nbytes(self) -> int | None:
        """Bytes of the safetensors files; None where there is no whole artefact."""
        entries = self.manifest()
        return None if entries is None else sum(e.nbytes for e in entries if e.name.endswith(".safetensors"))

    def download(self, folder: Path, *, check: Callable[[], None]) -> None:
        """Copy everything into a local folder and verify it; files that an earlier try brought are not fetched again.

        Raises:
            MissingInput: nothing whole lies here, or a file is not what the manifest says.
            StoreUnreachable: no answer.
        """
        entries = self.manifest()
        if entries is None:
            raise MissingInput(
                f"this worker's host {_host()} cannot see the artefact {self.url}: it is gone, was never uploaded "
                "whole, or lies in a store of that name elsewhere. Submit the job that makes it again, or give all "
                "hosts the same BITBUDGET_ARTEFACTS_URL and credentials"
            )
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {Path(entry.name) for entry in entries}
        for path in files_below(folder):
            if path not in wanted:
                (folder / path).unlink()
        for entry in entries:
            check()
            local = folder / entry.name
            if not local.resolve().is_relative_to(folder.resolve()):
                raise MissingInput(f"{self.url}/{MANIFEST} names a file outside of its folder: {entry.name}")
            if _is_entry(local, entry):
                continue
            local.parent.mkdir(parents=True, exist_ok=True)
            with self._naming("cannot read"):
                self._fs().get_file(f"{self.url}/{entry.name}", str(local))
            if not _is_entry(local, entry):
                raise MissingInput(
                    f"{self.url}/{entry.name} is not the file that was uploaded (its size or hash differs): submit "
                    "the job that makes it again"
                )

    def _fs(self) -> Any:
        import fsspec

        fs, _ = fsspec.url_to_fs(self.url)
        # other hosts write too: what was listed a while ago says nothing
        fs.invalidate_cache()
        return fs

    @contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Drivers raise what they like: name host and URL, and say whether a retry can help. No chained traceback:
        drivers' messages and frames may hold credentials."""
        try:
            yield
        except (CompressCoreError, WorkerError, JobTimeoutException):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            message = f"this worker's host {_host()} {what} {self.url}: {_plain(error)}"
            if isinstance(error, _REFUSALS) or "credentials" in type(error).__name__.lower():
                raise MissingInput(
                    f"{message}. Check that the store exists and that the worker's environment has its credentials "
                    "and endpoint"
                ) from None
            raise StoreUnreachable(message) from None


def _parent(fs: Any, path: str) -> None:
    """Real folders need to exist; object stores have none."""
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)


def _is_entry(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.nbytes and _sha256(path) == entry.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(error: Exception) -> str:
    """The error without secrets."""
    return _SECRETS.sub("…", f"{type(error).__name__}: {error}")


def _host() -> str:
    return socket.gethostname()
