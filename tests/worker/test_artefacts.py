"""The artefact store: folders, an S3 API on loopback, and what a host says of an artefact that it cannot see."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from results_db.locks import FileLock
from results_db.settings import Settings
from worker.artefacts import ArtefactStore
from worker.errors import MissingInput, StoreNotUsable, StoreUnreachable
from worker.files import artefact_bytes, move_folder
from worker.remote import MANIFEST, RemoteFolder, check_store

# one process starts the S3 API
pytestmark = pytest.mark.xdist_group("s3")

SECRET = "not-to-be-seen-anywhere"


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "shared")
    request.getfixturevalue("s3")
    return f"s3://box/{tmp_path.name}"


@pytest.fixture
def host(url: str, tmp_path: Path) -> Callable[[str], ArtefactStore]:
    """``host(name)``: the store as a host of that name sees it, with a var folder of its own."""
    return lambda name: ArtefactStore(url, tmp_path / name)


@pytest.fixture
def break_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Replace a coroutine of the S3 driver, whose instances are kept and bind theirs when they are made."""
    import fsspec

    driver = fsspec.get_filesystem_class("s3")

    def replace(name: str, coroutine: Any) -> None:
        monkeypatch.setattr(driver, name, coroutine)
        driver.clear_instance_cache()

    yield replace
    driver.clear_instance_cache()


def _fill(folder: Path) -> None:
    (folder / "part").mkdir()
    (folder / "a.safetensors").write_bytes(b"a" * 1000)
    (folder / "part" / "b.safetensors").write_bytes(b"b" * 500)
    (folder / "config.json").write_text("{}")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_one_host_publishes_and_another_fetches(host: Callable[[str], ArtefactStore], url: str) -> None:
    one, two = host("one"), host("two")
    folder = one.workspace("calibrations", "key")
    _fill(folder)
    made, nbytes = _contents(folder), artefact_bytes(folder)
    uri = one.publish(folder, "calibrations", "cal_1")
    assert uri == f"{url}/calibrations/cal_1"
    assert not folder.exists()
    for store in (one, two, host("three")):
        assert store.holds(uri, nbytes)
        assert not store.holds(uri, nbytes + 1)
        assert not store.holds(f"{uri}0", nbytes)
        assert _contents(store.fetch(uri)) == made
        assert _contents(store.fetch(uri)) == made


def test_publishing_again_replaces(host: Callable[[str], ArtefactStore]) -> None:
    """A try that was killed after it published, before its row was written, is done again under the same id."""
    store = host("one")
    for content in (b"first", b"second one"):
        folder = store.workspace("compressions", "key")
        (folder / f"{len(content)}.safetensors").write_bytes(content)
        uri = store.publish(folder, "compressions", "cmp_1")
    assert store.holds(uri, len(b"second one"))
    assert _contents(host("two").fetch(uri)) == {"10.safetensors": b"second one"}


def test_an_artefact_that_a_host_cannot_see_is_named_with_the_cure(host: Callable[[str], ArtefactStore]) -> None:
    store = host("one")
    uri = f"{store.url}/calibrations/cal_none"
    with pytest.raises(MissingInput) as raised:
        store.fetch(uri)
    for words in (os.uname().nodename, uri, "BITBUDGET_ARTEFACTS_URL", "Submit the job that makes it again"):
        assert words in str(raised.value)


def test_two_hosts_with_folders_of_their_own(tmp_path: Path) -> None:
    """The default: nothing is shared, and the second host says so instead of failing somewhere inside."""
    one, two = (ArtefactStore(str(tmp_path / name / "artefacts"), tmp_path / name) for name in ("one", "two"))
    folder = one.workspace("calibrations", "key")
    _fill(folder)
    uri = one.publish(folder, "calibrations", "cal_1")
    Path(uri).rename(tmp_path / "away")  # another host has no such path
    with pytest.raises(MissingInput, match="cannot see the artefact"):
        two.fetch(uri)


# --- object stores --------------------------------------------------------------------------------------------------


def test_half_an_upload_is_no_artefact(s3: dict[str, str], tmp_path: Path) -> None:
    store = ArtefactStore("s3://box/half", tmp_path / "var")
    folder = store.workspace("calibrations", "key")
    _fill(folder)

    n_asked = 0

    def check() -> None:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 3:
            raise KeyboardInterrupt

    remote = RemoteFolder("s3://box/half/calibrations/cal_1")
    with pytest.raises(KeyboardInterrupt):
        remote.upload(folder, check=check)
    assert not store.holds(remote.url, 1500)
    with pytest.raises(MissingInput, match="never uploaded whole"):
        store.fetch(remote.url)
    assert store.publish(folder, "calibrations", "cal_1") == remote.url
    assert store.holds(remote.url, 1500)


def test_a_download_goes_on_where_it_stopped_and_is_verified(s3: dict[str, str], tmp_path: Path) -> None:
    store = ArtefactStore("s3://box/verified", tmp_path / "one")
    folder = store.workspace("calibrations", "key")
    _fill(folder)
    made = _contents(folder)
    uri = store.publish(folder, "calibrations", "cal_1")
    fs = RemoteFolder(uri)._fs()
    fs.pipe_file(f"{uri}/part/b.safetensors", b"c" * 500)
    other = ArtefactStore("s3://box/verified", tmp_path / "two")
    with pytest.raises(MissingInput, match=r"part/b\.safetensors is not the file that was uploaded"):
        other.fetch(uri)
    part = next((tmp_path / "two" / "cache" / "artefacts").glob("*.part"))
    before = (part / "a.safetensors").stat().st_mtime_ns
    fs.pipe_file(f"{uri}/part/b.safetensors", b"b" * 500)
    fetched = other.fetch(uri)
    assert _contents(fetched) == made
    assert (fetched / "a.safetensors").stat().st_mtime_ns == before


def test_workers_of_one_host_read_one_copy_at_the_same_time(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = ArtefactStore("s3://box/together", tmp_path / "one")
    folder = maker.workspace("calibrations", "key")
    _fill(folder)
    uri = maker.publish(folder, "calibrations", "cal_1")
    downloads = []
    download = RemoteFolder.download

    def count(self: RemoteFolder, folder: Path, **options: Any) -> None:
        downloads.append(folder)
        download(self, folder, **options)

    monkeypatch.setattr(RemoteFolder, "download", count)
    first = ArtefactStore("s3://box/together", tmp_path / "two")
    second = ArtefactStore("s3://box/together", tmp_path / "two", check=_never)
    assert first.fetch(uri) == second.fetch(uri)
    assert len(downloads) == 1
    # and what is read is not replaced under its reader
    again = maker.workspace("calibrations", "key")
    _fill(again)
    reader = ArtefactStore("s3://box/together", tmp_path / "one")
    copy = reader.fetch(uri)
    before = (copy / "a.safetensors").stat().st_ino
    assert maker.publish(again, "calibrations", "cal_1") == uri
    assert (copy / "a.safetensors").stat().st_ino == before


def _never() -> None:
    raise AssertionError("nothing had to be waited for")


def test_a_manifest_cannot_write_elsewhere(s3: dict[str, str], tmp_path: Path) -> None:
    uri = "s3://box/evil/cal_1"
    entry = {"name": "../../out", "nbytes": 1, "sha256": "0"}
    RemoteFolder(uri)._fs().pipe_file(f"{uri}/{MANIFEST}", json.dumps({"files": [entry]}).encode())
    with pytest.raises(MissingInput, match="outside of its folder"):
        ArtefactStore("s3://box/evil", tmp_path / "var").fetch(uri)
    RemoteFolder(uri)._fs().pipe_file(f"{uri}/{MANIFEST}", b"[]")
    with pytest.raises(MissingInput, match="is damaged"):
        ArtefactStore("s3://box/evil", tmp_path / "var").fetch(uri)


def test_a_bucket_that_is_not_there_is_said_before_any_work(s3: dict[str, str], tmp_path: Path) -> None:
    store = ArtefactStore("s3://nobody/x", tmp_path / "var")
    with pytest.raises(MissingInput, match=r"cannot write to s3://nobody/x: .*credentials and endpoint") as raised:
        store.workspace("calibrations", "key")
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_store_that_does_not_answer_may_be_tried_again(
    s3: dict[str, str], tmp_path: Path, break_driver: Callable[..., None]
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError(f"http://key:{SECRET}@127.0.0.1:9/?X-Amz-Signature={SECRET} does not answer")

    break_driver("_pipe_file", refuse)
    with pytest.raises(StoreUnreachable, match="does not answer") as raised:
        ArtefactStore("s3://box/x", tmp_path / "var").workspace("calibrations", "key")
    assert raised.value.retryable
    assert SECRET not in str(raised.value)


def test_a_full_disk_stays_a_full_disk(s3: dict[str, str], tmp_path: Path, break_driver: Callable[..., None]) -> None:
    store = ArtefactStore("s3://box/full", tmp_path / "one")
    folder = store.workspace("calibrations", "key")
    _fill(folder)
    uri = store.publish(folder, "calibrations", "cal_1")

    async def fill_up(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    break_driver("_get_file", fill_up)
    with pytest.raises(OSError, match="No space left"):
        ArtefactStore("s3://box/full", tmp_path / "two").fetch(uri)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gs://bucket/x", "gcsfs"),
        ("nonsense://x", "no driver knows nonsense://"),
        ("memory://x", "ends with the job"),
        ("https://host/x", "can only be read"),
    ],
)
def test_urls_that_cannot_hold_artefacts(url: str, words: str) -> None:
    with pytest.raises(StoreNotUsable, match=words):
        check_store(url)


def test_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings(var_dir=tmp_path / "v").artefacts_url == str(tmp_path / "v" / "artefacts")
    assert Settings(artefacts_url="here").artefacts_url == str(tmp_path / "here")
    assert Settings(artefacts_url="file:///data/my%20own").artefacts_url == "/data/my own"
    assert Settings(artefacts_url="s3://box/x/").artefacts_url == "s3://box/x"
    for url in (f"ftp://me:{SECRET}@host/x", f"s3://box/x?secret={SECRET}"):
        with pytest.raises(ValueError, match="write no credentials") as raised:
            Settings(artefacts_url=url)
        assert SECRET not in str(raised.value)


def test_a_worker_does_not_start_without_the_driver(tmp_path: Path, repo: Path) -> None:
    environment = os.environ | {"BITBUDGET_VAR_DIR": str(tmp_path), "BITBUDGET_ARTEFACTS_URL": "gs://bucket/x"}
    done = subprocess.run(
        [sys.executable, "-m", "worker"], cwd=repo, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3
    assert "gcsfs" in done.stderr
    assert "Traceback" not in done.stderr


# --- workspaces -----------------------------------------------------------------------------------------------------

_HOLD = """
import sys
from pathlib import Path
from worker.artefacts import ArtefactStore
store = ArtefactStore(sys.argv[1], Path(sys.argv[2]))
folder = store.workspace("calibrations", "key")
(folder / "layer-00000").write_bytes(b"done")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_job_leaves_its_workspace_to_the_next(tmp_path: Path, repo: Path) -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    url, var = str(tmp_path / "artefacts"), tmp_path / "var"
    command = [sys.executable, "-c", _HOLD, url, str(var)]
    holder = subprocess.Popen(command, cwd=repo, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Stopped):
            ArtefactStore(url, var, check=stop).workspace("calibrations", "key")
        assert ArtefactStore(url, var, check=stop).workspace("calibrations", "another key").is_dir()
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    store = ArtefactStore(url, var, check=stop)
    folder = store.workspace("calibrations", "key")
    assert _contents(folder) == {"layer-00000": b"done"}
    assert store.workspace("calibrations", "key") == folder


def test_only_what_nobody_touched_or_holds_is_cleared_away(tmp_path: Path) -> None:
    url, var = str(tmp_path / "artefacts"), tmp_path / "var"
    long_ago = time.time() - 20 * 86_400

    def age(folder: Path) -> None:
        for path in (folder.with_suffix(".lock"), folder, *folder.rglob("*")):
            os.utime(path, (long_ago, long_ago))

    crashed, store = ArtefactStore(url, var), ArtefactStore(url, var)
    stale, recent = crashed.workspace("calibrations", "stale"), crashed.workspace("calibrations", "recent")
    held = store.workspace("compressions", "held")
    for folder in (stale, recent, held):
        (folder / "part").write_bytes(b"x")
        age(folder)
    os.utime(recent / "part")
    for lock in crashed.workspaces._locks.values():
        lock.release()
    assert ArtefactStore.clean(var, 14) == [stale]
    assert not stale.exists()
    assert not stale.with_suffix(".lock").exists()
    assert recent.exists()
    assert held.exists()


def test_copies_in_use_are_not_cleared_away(s3: dict[str, str], tmp_path: Path) -> None:
    store, other = (ArtefactStore("s3://box/used", tmp_path / name) for name in ("one", "two"))
    folder = store.workspace("calibrations", "key")
    _fill(folder)
    copy = other.fetch(store.publish(folder, "calibrations", "cal_1"))
    for path in (copy.with_suffix(".lock"), copy):
        os.utime(path, (0, 0))
    assert ArtefactStore.clean(tmp_path / "two", 14) == []
    for lock in other._in_use.values():
        lock.release()
    for path in (copy, *copy.rglob("*")):
        os.utime(path, (0, 0))
    assert ArtefactStore.clean(tmp_path / "two", 14) == [copy]


# --- folders and locks ----------------------------------------------------------------------------------------------


def test_across_filesystems_a_folder_is_copied_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "work", tmp_path / "artefacts" / "cal_1"
    source.mkdir()
    _fill(source)
    made = _contents(source)
    rename = Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if self == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    move_folder(source, target)
    assert _contents(target) == made
    assert not source.exists()
    assert [path.name for path in target.parent.iterdir()] == ["cal_1"]


def test_locks_are_shared_by_readers_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    first = FileLock.try_acquire(path, shared=True)
    second = FileLock.try_acquire(path, shared=True)
    assert first is not None
    assert second is not None
    assert FileLock.try_acquire(path) is None
    first.release()
    second.release()
    writer = FileLock.try_acquire(path)
    assert writer is not None
    assert FileLock.try_acquire(path, shared=True) is None
    writer.release(remove=True)
    assert not path.exists()
