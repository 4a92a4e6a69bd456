"""Configs of a sweep are told apart by name, whatever fields were left out."""

from __future__ import annotations

from web.queries.figure_rows import _config_names


def test_names_tell_configs_apart() -> None:
    configs = [{"b_q": 2}, {"b_q": 2, "states": 4096}, {"b_q": 2, "seed": 3}, {"b_q": 2, "codebook": "e8"}]
    assert _config_names(configs) == [
        "trellis 2b r0 seed 0 it 2",
        "trellis/4096 2b r0",
        "trellis 2b r0 seed 3 it 2",
        "e8 2b r0",
    ]
