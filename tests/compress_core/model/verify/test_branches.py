"""Paths part where they first differ, and no place is overwritten before everybody has read it."""

from __future__ import annotations

import random

import pytest

from compress_core.config import CompressionConfig
from compress_core.verify.branches import Branches, LayerConfigs

A, B, C = (CompressionConfig(b_q=bits, codebook="scalar") for bits in (2, 3, 4))


def _walk(branches: Branches) -> list[list[str]]:
    """What has happened to the states of each path, played through in place as memory does it."""
    places: dict[int, list[str]] = {0: []}
    for settings in branches.layers:
        read: set[int] = set()
        before = {place: list(what) for place, what in places.items()}
        for setting in settings:
            done = "".join("-" if config is None else str(config.b_q) for config in setting.configs)
            for move in setting.moves:
                assert places[move.source] == before[move.source], "read after it was overwritten"
                places[move.target] = [*places[move.source], done]
                read.add(move.source)
        assert read == set(before)
    return [places[place] for place in branches.places]


def test_every_path_gets_what_it_was_told() -> None:
    random.seed(3)
    menu = [None, A, B, C]
    for n_paths in (1, 2, 5, 12):
        paths: list[list[LayerConfigs]] = [
            [tuple(random.choice(menu[:2] if layer < 2 else menu) for _ in range(2)) for layer in range(4)]
            for _ in range(n_paths)
        ]
        branches = Branches.of(paths)
        expected = [["--"] * 4]
        for path in paths:
            expected.append(["".join("-" if config is None else str(config.b_q) for config in layer) for layer in path])
        assert _walk(branches) == expected
        assert branches.n_places == len({tuple(what) for what in expected})


def test_paths_go_together_until_they_part() -> None:
    branches = Branches.of([[(A,), (B,), (None,)], [(A,), (C,), (None,)], [(A,), (C,), (None,)]])
    assert [sum(len(setting.moves) for setting in settings) for settings in branches.layers] == [2, 3, 3]
    assert branches.n_places == 3
    assert branches.places[2] == branches.places[3]


def test_fields_without_effect_do_not_part_paths() -> None:
    seeded = CompressionConfig(b_q=4, codebook="rtn", seed=5)
    plain = CompressionConfig(b_q=4, codebook="rtn")
    assert Branches.of([[(seeded,)], [(plain,)]]).n_places == 2


def test_the_original_alone_is_an_allocation_too() -> None:
    branches = Branches.of([[(None,), (None,)]])
    assert branches.n_places == 1
    assert branches.places == (0, 0)


def test_no_allocation_is_refused() -> None:
    with pytest.raises(ValueError, match="need an allocation"):
        Branches.of([])
