"""Long texts are tokenised in pieces: every byte is behind exactly one token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress_core.text import tokens


def test_pieces_cover_the_text_and_rarely_change_a_token(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n\n".join(f"Paragraph {n} says é漢😀 and {n * n}." for n in range(400))
    whole_ids, whole_ends = tokens._tokenise(repo / "demo" / "model", text)
    monkeypatch.setattr(tokens, "_WHOLE", 1000)
    monkeypatch.setattr(tokens, "_PIECE", 3000)
    pieces = list(tokens._pieces(text))
    assert "".join(pieces) == text
    assert len(pieces) > 4
    assert all(piece.endswith("\n\n") for piece in pieces[:-1])
    ids, ends = tokens._tokenise(repo / "demo" / "model", text)
    assert ends[-1] == whole_ends[-1] == len(text.encode())
    assert np.all(np.diff(ends) >= 0)
    assert abs(ids.size - whole_ids.size) <= len(pieces)


def test_a_piece_without_a_blank_line_is_cut_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_WHOLE", 10)
    monkeypatch.setattr(tokens, "_PIECE", 10)
    assert list(tokens._pieces("x" * 25)) == ["x" * 10, "x" * 10, "x" * 5]
