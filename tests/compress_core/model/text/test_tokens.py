"""Windows of tokens: fixed or sampled, with exact hashes and byte counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress_core.errors import CalibrationError, CheckpointError, ConfigError
from compress_core.text.tokens import fixed_windows, load_tokenizer, sampled_windows


def test_fixed_windows_are_the_joined_text(qwen2: Path, corpus_text: str) -> None:
    windows = fixed_windows(qwen2, corpus_text, 50)
    ids = load_tokenizer(qwen2)(corpus_text)["input_ids"]
    assert windows.n_windows == len(ids) // 50
    assert windows.ids.flatten().tolist() == ids[: windows.n_tokens]


def test_bytes_behind_the_predicted_tokens(qwen2: Path, corpus_text: str) -> None:
    windows = fixed_windows(qwen2, corpus_text, 40)
    tokenizer = load_tokenizer(qwen2)
    decoded = [len(tokenizer.decode(row[1:]).encode()) for row in windows.ids.tolist()]
    # a window may begin or end inside a character of several bytes
    assert np.abs(windows.n_bytes - np.array(decoded)).max() <= 3
    assert np.mean(windows.n_bytes == np.array(decoded)) > 0.9


def test_limit_spreads_windows_evenly(qwen2: Path, corpus_text: str) -> None:
    every = fixed_windows(qwen2, corpus_text, 30)
    some = fixed_windows(qwen2, corpus_text, 30, limit=5)
    picks = [every.ids.tolist().index(row) for row in some.ids.tolist()]
    assert len(picks) == 5
    assert picks[0] == 0
    assert np.ptp(np.diff(picks)) <= 1
    assert fixed_windows(qwen2, corpus_text, 30, limit=10**6).sha256 == every.sha256


def test_sampling_is_seeded_and_without_overlap(qwen2: Path, corpus_text: str) -> None:
    first = sampled_windows(qwen2, corpus_text, samples=20, length=30, seed=1)
    again = sampled_windows(qwen2, corpus_text, samples=20, length=30, seed=1)
    other = sampled_windows(qwen2, corpus_text, samples=20, length=30, seed=2)
    assert first.sha256 == again.sha256 != other.sha256
    assert len({tuple(row) for row in first.ids.tolist()}) == 20
    ids = load_tokenizer(qwen2)(corpus_text)["input_ids"]
    n_windows = len(ids) // 30
    everything = sampled_windows(qwen2, corpus_text, samples=n_windows, length=30, seed=0).ids.flatten().tolist()
    start = next(i for i in range(30) if ids[i : i + 30] == everything[:30])
    assert ids[start : start + len(everything)] == everything


def test_too_short_a_text_says_what_it_could_give(qwen2: Path) -> None:
    with pytest.raises(CalibrationError, match=r"enough for \d windows of 30; 500 were asked for"):
        sampled_windows(qwen2, "some words " * 20, samples=500, length=30, seed=0)
    with pytest.raises(CalibrationError, match="enough for 0 windows"):
        fixed_windows(qwen2, "short", 100)


def test_bad_arguments(qwen2: Path, corpus_text: str) -> None:
    with pytest.raises(ConfigError):
        fixed_windows(qwen2, corpus_text, 1)
    with pytest.raises(ConfigError):
        fixed_windows(qwen2, corpus_text, 20, limit=0)
    with pytest.raises(ConfigError):
        sampled_windows(qwen2, corpus_text, samples=0, length=20, seed=0)


def test_no_tokenizer(broken_copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken_copy / name).unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        fixed_windows(broken_copy, "text", 2)
