"""Numbers as people read them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

from web import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.3456, "12.35"),
        (0.0123456, "0.01235"),
        (0.000123456, "1.235e−4"),
        (-3.5, "−3.500"),
        (123456.0, "1.235e5"),
        (0, "0"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert formatting.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3.0, "3"), (0.7, "0.7"), (60.0, "60"), (23.159, "23.16"), (1e-5, "1.000e−5"), (None, "–")]
)
def test_short(value: float | None, text: str) -> None:
    assert formatting.short(value) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(17_550_000_000, "17.550 GB"), (3_440_128, "3.440 MB"), (2_048, "2.0 kB"), (12, "12 B"), (None, "–")],
)
def test_size_is_decimal(nbytes: int | None, text: str) -> None:
    assert formatting.size(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (0, "< 0.1 s"), (None, "–")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert formatting.duration(seconds) == text


def test_moments_and_intervals() -> None:
    start = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert formatting.moment(start) == "2026-01-02 03:04:05 UTC"
    assert formatting.between(start, start + timedelta(seconds=90)) == "1 min 30 s"
    assert formatting.between(start, None) == "–"
    assert formatting.interval(1.0, 2.0) == "[1.000, 2.000]"
    assert formatting.interval(1.0, None) == ""
    assert formatting.count(1234567) == "1\u202f234\u202f567"


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"b_q": 2, "rank": 32, "factor_bits": 4, "codebook": "e8"}, "e8 2b r32 f4"),
        ({"b_q": 3, "rank": 8, "factor_bits": [4, 16], "codebook": "scalar"}, "scalar 3b r8 f4/16"),
        ({"b_q": 4}, "trellis 4b r0"),
        ({"b_q": 4, "states": 1024}, "trellis 4b r0"),
        ({"b_q": 2, "states": 4096, "rank": 8}, "trellis/4096 2b r8 f4"),
        ({"b_q": 4, "codebook": "e8", "states": 4096}, "e8 4b r0"),
        ({"b_q": 4, "rank": 0, "codebook": "rtn"}, "rtn 4b"),
        ({"b_q": 3, "rank": 0, "codebook": "gptq"}, "gptq 3b"),
    ],
)
def test_config_label(config: dict[str, object], label: str) -> None:
    assert formatting.config_label(config) == label
