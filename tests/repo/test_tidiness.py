"""What is committed: short files, nothing of one machine, nothing large."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

LONGEST_FILE = 600
LARGEST_FILE = 12_500_000
#: absolute paths under these are somebody's machine
_MACHINE = re.compile(r"(?<![\w.~/:-])/(?:home|Users|root|work|farm|mnt|scratch)/[\w.-]+")
#: package registries and mirrors belong into a user's own pip settings
_REGISTRY = re.compile(r"(?:pypi\.org|files\.pythonhosted|download\.pytorch|registry\.npmjs|crates\.io)", re.IGNORECASE)
_TEXT = {".py", ".js", ".css", ".html", ".md", ".yaml", ".yml", ".toml", ".txt", ".mako", ".json", ".jsonl", ""}


@pytest.fixture(scope="module")
def tracked(repo: Path) -> list[Path]:
    """Files under version control that exist."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repo, capture_output=True, text=True, timeout=60)
    if listed.returncode:
        pytest.skip("this is no git checkout: there is no list of what is committed")
    return [path for name in listed.stdout.split("\0") if name and (path := repo / name).is_file()]


def text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.suffix in _TEXT else None


def test_no_source_file_is_longer_than_the_ceiling(tracked: list[Path], repo: Path) -> None:
    code = [path for path in tracked if path.suffix in {".py", ".js", ".css", ".html"}]
    lengths = {str(path.relative_to(repo)): path.read_text(encoding="utf-8").count("\n") for path in code}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_nothing_names_a_machine(tracked: list[Path], repo: Path) -> None:
    assert _findings(tracked, repo, _MACHINE) == []


def test_nothing_names_a_package_registry(tracked: list[Path], repo: Path) -> None:
    assert _findings(tracked, repo, _REGISTRY) == []


def test_nothing_large_is_committed(tracked: list[Path], repo: Path) -> None:
    assert [str(path.relative_to(repo)) for path in tracked if path.stat().st_size > LARGEST_FILE] == []


def test_tests_do_not_sleep_for_a_time(tracked: list[Path], repo: Path) -> None:
    """Waiting for a state, in a loop with a deadline, sleeps at most a tick."""
    sleeps = re.compile(r"^\s*(?:time|asyncio|anyio)\.sleep\((?:[1-9]|0?\.[2-9])", re.MULTILINE)
    tests = [path for path in tracked if path.is_relative_to(repo / "tests") and path.suffix == ".py"]
    assert _findings(tests, repo, sleeps) == []


def test_every_skip_has_a_reason(tracked: list[Path], repo: Path) -> None:
    bare = re.compile(r"pytest\.mark\.(?:skip|xfail)\s*(?:\(\s*\))?\s*$|pytest\.skip\(\s*\)", re.MULTILINE)
    tests = [path for path in tracked if path.is_relative_to(repo / "tests") and path.suffix == ".py"]
    assert _findings(tests, repo, bare) == []


def _findings(paths: list[Path], repo: Path, pattern: re.Pattern[str]) -> list[str]:
    own = Path(__file__).resolve()
    found = []
    for path in paths:
        text = text_of(path)
        if text is None or path.resolve() == own:
            continue
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(repo)}:{line}: {match.group(0)}")
    return found
