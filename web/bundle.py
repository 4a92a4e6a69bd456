"""The chart library: built once by vl-convert into the cache folder, served under a name made of its content.

vl-convert holds the interpreter's lock for seconds while it builds, so it runs in a process of its own
(``python -m web.bundle FOLDER``) and the server goes on answering.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from web.figures.base import VEGA_LITE_MAJOR

_MANIFEST = "charts.json"
_TIME_LIMIT_S = 120.0
#: a module with one export, so that nothing is put on ``window``
_SNIPPET = "export { vegaEmbed };"


@dataclass(frozen=True, slots=True)
class BundleStatus:
    """``ready`` with a file, ``building``, or ``failed`` with a message."""

    state: str
    file: Path | None = None
    message: str | None = None


class ChartBundle:
    """Builds the chart library once, in the background; thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._status: BundleStatus | None = None

    def status(self) -> BundleStatus:
        """What there is now; the first call starts the building where nothing is cached."""
        with self._lock:
            if self._status is None:
                self._status = self._cached()
            if self._status is None:
                self._status = BundleStatus("building")
                self._thread = threading.Thread(target=self._build, name="chart-bundle", daemon=True)
                self._thread.start()
            return self._status

    def wait(self, timeout_s: float) -> BundleStatus:
        """``status`` after waiting for the building to end."""
        self.status()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self.status()

    def _cached(self) -> BundleStatus | None:
        try:
            manifest = json.loads((self.folder / _MANIFEST).read_text())
            file = self.folder / manifest["file"]
        except (OSError, ValueError, KeyError):
            return None  # not built yet, or a half-written folder: build anew
        installed = _vl_convert_version()
        is_old = installed is not None and manifest.get("vl_convert") != installed
        if is_old or manifest.get("snippet") != _SNIPPET or not file.is_file():
            return None
        return BundleStatus("ready", file)

    def _build(self) -> None:
        command = [sys.executable, "-m", "web.bundle", str(self.folder)]
        try:
            done = subprocess.run(
                command,
                cwd=Path(__file__).parents[1],
                capture_output=True,
                text=True,
                timeout=_TIME_LIMIT_S,
                check=False,
            )
            failure = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        except (OSError, subprocess.TimeoutExpired) as error:
            failure = [str(error)]
        built = None if failure else self._cached()
        with self._lock:
            self._status = built or BundleStatus(
                "failed", message=failure[0] if failure else "the chart library was built but cannot be read back"
            )


def _vl_convert_version() -> str | None:
    """The installed version without loading the library; None where it is absent (an image that carries the bundle)."""
    try:
        return importlib.metadata.version("vl-convert-python")
    except importlib.metadata.PackageNotFoundError:
        return None


def build(folder: Path) -> Path:
    """Write the library, its gzip and the manifest; the library's path.

    Raises:
        RuntimeError: vl-convert draws another Vega-Lite major than the figures are written for.
    """
    folder.mkdir(parents=True, exist_ok=True)  # first: where nothing can be written, seconds of work are of no use
    import vl_convert

    versions = vl_convert.get_vegalite_versions()
    if versions[-1].split(".")[0] != str(VEGA_LITE_MAJOR):
        raise RuntimeError(f"vl-convert draws Vega-Lite {versions[-1]}, the figures are Vega-Lite {VEGA_LITE_MAJOR}")
    code = vl_convert.javascript_bundle(_SNIPPET, vl_version=versions[-1]).encode()
    file = folder / f"charts-{hashlib.sha256(code).hexdigest()[:16]}.js"
    _write(file, code)
    _write(file.with_name(file.name + ".gz"), gzip.compress(code, 9, mtime=0))
    manifest = {"file": file.name, "vl_convert": _vl_convert_version(), "vega_lite": versions[-1], "snippet": _SNIPPET}
    _write(folder / _MANIFEST, json.dumps(manifest).encode())
    return file


def _write(path: Path, content: bytes) -> None:
    """All or nothing, so that a reader never sees half a file. Everybody may read it: an image is built by one user and
    run by another."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as stream:
        os.fchmod(handle, 0o644)
        stream.write(content)
    Path(name).replace(path)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
