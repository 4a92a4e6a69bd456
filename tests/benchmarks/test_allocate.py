"""The allocator's benchmark: its page keeps what was not measured anew, and its tables say what was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.allocation.instances import model_like
from benchmarks.allocation.page import HEADINGS, section, write_sections
from benchmarks.allocation.peers import Peer, best_uniform_column, measure_peers, peers_table
from compress_core.allocate import solve_allocation


def test_a_section_replaces_its_own_and_leaves_the_others(tmp_path: Path) -> None:
    page = tmp_path / "results" / "page.md"
    first = [section(heading, "command", "intro", [f"| old {heading} |"]) for heading in HEADINGS]
    write_sections(first[::-1], page)
    text = page.read_text()
    assert [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")] == list(HEADINGS)
    write_sections([section(HEADINGS[1], "command", "intro", ["| new |"], "outro")], page)
    changed = page.read_text()
    assert "| new |" in changed
    assert f"old {HEADINGS[1]}" not in changed
    assert f"old {HEADINGS[0]}" in changed
    assert f"old {HEADINGS[2]}" in changed
    write_sections(first, page)
    assert page.read_text() == text
    with pytest.raises(ValueError, match="no section 'Elsewhere'"):
        write_sections(["## Elsewhere\n"], page)


def test_peers_stay_above_the_optimum_and_within_the_budget() -> None:
    found = measure_peers(28, 15)
    assert all(min(peer.losses) >= -1e-12 for peer in found)
    assert all(min(peer.unused) >= 0 for peer in found)
    by_name = {peer.name: peer for peer in found}
    # a finer discretisation is a better one on every table
    fine, coarse = (next(p for name, p in by_name.items() if buckets in name) for buckets in ("10,000", " 1,000"))
    assert all(f <= c for f, c in zip(fine.losses, coarse.losses, strict=True))


def test_best_uniform_column_fits_and_is_the_best_that_does() -> None:
    table = model_like(28, 15, 0, 0.5)
    column = int(best_uniform_column(table.errors, table.nbytes, table.budget)[0])
    fits = np.flatnonzero(table.nbytes.sum(axis=0) <= table.budget)
    assert column in fits
    assert table.errors[:, column].sum() == table.errors[:, fits].sum(axis=0).min()
    assert solve_allocation(table.errors, table.nbytes, table.budget).objective <= table.errors[:, column].sum()


def test_the_table_has_one_line_a_peer() -> None:
    peers = [Peer("x", (0.1, 0.3), (1.0, 2.0), (0.0, 0.1)), Peer("y", (0.00001, 20.0), (1.0, 2.0), (0.0, 0.1))]
    lines = peers_table({(1, 2): peers, (3, 4): peers})
    assert len(lines) == 4
    assert lines[2].startswith("| x | +20 % (+10 % – +30 %) | 5.0e-02 | 1.500 | +20 % ")
    assert len({line.count("|") for line in lines}) == 1
    assert "(+0.0010 % – +2000 %)" in lines[3]
