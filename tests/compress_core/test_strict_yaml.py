"""A key that is written twice is refused, wherever it stands."""

from __future__ import annotations

from itertools import pairwise

import pytest

from compress_core.strict_yaml import Bomb, RepeatedKey, load_yaml


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a'", 3),
        ("a:\n  b: 1\n  b: 1\n", "'b'", 3),
        ("a: [{b: 1, b: 2}]", "'b'", 1),
        ("1: x\n1: y\n", "1", 2),
        ("<<: {a: 1}\n<<: {b: 1}\n", "'<<'", 2),
    ],
    ids=["top", "nested", "in a list", "a number", "merges"],
)
def test_a_repeated_key_is_refused_with_its_line(text: str, key: str, line: int) -> None:
    with pytest.raises(RepeatedKey, match=rf"key {key} appears twice \(line {line}\)"):
        load_yaml(text)


def test_what_is_merged_in_may_be_overridden() -> None:
    assert load_yaml("base: &b {x: 1, y: 2}\nown: {<<: *b, y: 3}\n")["own"] == {"x": 1, "y": 3}
    chain = "b: &b {y: 2}\na: [{deep: &o {<<: *b, y: 3}}]\nlast: {<<: *o, z: 4}\n"
    assert load_yaml(chain)["last"] == {"y": 3, "z": 4}


#: each letter stands for ten of the one before
TENFOLD = "a: &a [1]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in pairwise("abcdef"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("&a [*a]", r"a value holds itself \(line 1\)"),
        (TENFOLD, "more than 100,000 values, references followed"),
        ("x: " + "9" * 101, r"a number has more than 100 characters \(line 1\)"),
        ("x: 1." + "9" * 101, "a number has more than 100 characters"),
    ],
    ids=["itself", "tenfold", "int", "float"],
)
def test_what_stands_for_more_than_it_says_is_refused(text: str, message: str) -> None:
    with pytest.raises(Bomb, match=message):
        load_yaml(text)


def test_references_are_followed_as_long_as_they_are_few() -> None:
    assert load_yaml("a: &a [1, 2]\nb: [*a, *a]\nn: " + "9" * 100) == {"a": [1, 2], "b": [[1, 2]] * 2, "n": 10**100 - 1}


def test_nothing_but_plain_values_is_made() -> None:
    with pytest.raises(Exception, match="could not determine a constructor"):
        load_yaml("!!python/object/apply:os.getcwd []")
