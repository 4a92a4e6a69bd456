"""What is a hub id, and what only looks like one."""

from __future__ import annotations

import pytest

from compress_core.hub import is_commit, is_hub_id


@pytest.mark.parametrize(
    "text", ["Qwen/Qwen2-1.5B", "a/b", "org_1/name.v2", "EleutherAI/pythia-70m", "_a/b_", "a/" + "b" * 94]
)
def test_hub_ids(text: str) -> None:
    assert is_hub_id(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "/a", "a/", "/", "a/b/c", "a//b", "../b", "a/..", "./a", "a/.b", ".a/b", "a/b.", "-a/b", "a/b-"),
        *("a/b\n", " a/b", "a/b ", "a b/c", "a\\b", "a/b\0", "a/b?x=1", "a/b#c", "a/b@main", "~/a", "a:b/c"),
        *("http://a/b", "file:///a", "hf://a/b", "a..b/c", "a/b--c", "ä/b", "a/ｂ", "а/b", "a/１", "a/" + "b" * 95),
        *("$(touch x)/a", "a/`b`", "a;b/c", "%2e%2e/a", "C:/a"),
    ],
)
def test_what_is_none(text: str) -> None:
    assert not is_hub_id(text)


@pytest.mark.parametrize(
    ("text", "commit"),
    [
        ("0123456789abcdef0123456789abcdef01234567", True),
        (None, False),
        ("", False),
        ("main", False),
        ("refs/pr/1", False),
        ("0123456789ABCDEF0123456789ABCDEF01234567", False),
        ("0123456789abcdef0123456789abcdef0123456", False),
        ("0123456789abcdef0123456789abcdef012345678", False),
        ("0123456789abcdef0123456789abcdef01234567\n", False),
        ("０123456789abcdef0123456789abcdef0123456", False),
    ],
)
def test_commits(text: str | None, commit: bool) -> None:
    assert is_commit(text) is commit
