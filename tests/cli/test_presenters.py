"""What progress and results look like."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console

from cli.output import duration, table
from cli.tables import gate_remarks, gate_table, headline_sentences, headline_tables
from cli.watch import presenters
from cli.watch.presenters import LiveProgress, PlainLines
from cli.watch.snapshot import Snapshot, without_parts


def job(step: str, state: str, **values: Any) -> dict[str, Any]:
    times = {"started_at": "2026-01-01T12:00:00Z", "finished_at": "2026-01-01T12:01:05Z"}
    base = {"id": f"job_{step}", "step": step, "kind": step.partition(":")[0], "state": state}
    return base | times | {"progress": None, "result": None, "error": None} | values


JOBS = [
    job("calibrate", "succeeded", result={"reused": True}),
    job("evaluate:original:[text]", "succeeded", result={"value": 14.2236}),
    job("gate:1", "succeeded", result={"verdicts": {"error_varies": "GO", "profiles_differ": "NO-GO"}}),
    job("compress:rtn", "failed", error={"message": "no bytes left [on] disk"}),
    job("sweep", "running", progress={"done": 3, "total": 12, "message": "0.q e8 2b r0", "eta_s": 61.0}),
    job("fit", "waiting"),
]


def snapshot() -> Snapshot:
    return Snapshot("study", {"state": "running", "finished_at": None}, JOBS)


def rendered(*things: Any, width: int = 120) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    for thing in things:
        console.print(thing)
    return stream.getvalue()


def test_plain_lines_tell_each_step_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainLines()
    with lines:
        lines.show(snapshot())
        lines.show(snapshot())
    told = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert told[0] == ["✓", "calibrate", "1", "min", "05", "s", "reused"]
    assert told[1][-2:] == ["PPL", "14.22"]
    assert told[2][-4:] == ["error_varies:", "GO,", "profiles_differ:", "NO-GO"]
    assert told[3][2:] == ["failed:", "no", "bytes", "left", "[on]", "disk"]
    assert " ".join(told[4]).startswith("· sweep 3/12, 0.q e8 2b r0, 1 min 01 s to go; about")
    assert len(told) == 5


def test_live_progress_shows_a_bar_for_what_runs_and_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(presenters, "err", lambda: Console(file=screen, force_terminal=True, width=120, height=30))
    live = LiveProgress()
    with live:
        live.show(snapshot())
        live.note("the stream broke off")
    told = screen.getvalue()
    for words in ("✓", "3/12", "whole study", "4/6 steps", "the stream broke off"):
        assert words in told


def test_the_presenter_follows_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(presenters.presenter(quiet=False), PlainLines)
    assert isinstance(presenters.presenter(quiet=True), presenters.Quiet)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(presenters.presenter(quiet=False), LiveProgress)


def gate(phase: int, name: str, verdict: str, **values: Any) -> dict[str, Any]:
    numbers = {"value": 2.5, "threshold": 3.0, "ci_low": 2.1, "ci_high": 3.2, "unit": "×"}
    words = {"explanation": f"{name} explained.", "fallback": "Pivot.", "id": f"gate_{phase}{name}"}
    return {"phase": phase, "name": name, "verdict": verdict} | numbers | words | values


def test_gates_come_in_order_and_those_that_are_not_go_are_explained() -> None:
    gates = [gate(1, "b", "NO-GO"), gate(0, "a", "GO"), gate(4, "c", "NOT MEASURED", value=None, ci_low=None)]
    told = rendered(gate_table(gates))
    assert told.index(" a ") < told.index(" b ") < told.index(" c ")
    assert "2.5 × [2.1, 3.2]" in told
    assert gate_remarks(gates) == ["1 b: b explained. The plan then: Pivot.", "4 c: c explained."]


def test_the_headline_has_a_table_and_a_sentence_for_each_budget() -> None:
    row = {"name": "original", "label": "original", "bytes": 1_000_000, "ppl": 14.2236, "ppl_low": 14.0}
    entry = {"budget_bytes": 500, "rows": [row | {"ppl_high": 14.5}], "sentence": "It did not."}
    headline = entry | {"dataset": "stdlib", "split": "report", "budgets": [entry, entry | {"sentence": None}]}
    told = rendered(*headline_tables(headline))
    assert told.count("Perplexity on stdlib (report), budget 500 bytes") == 2
    assert "1,000,000" in told
    assert "14 – 14.5" in told
    assert headline_sentences(headline)[0] == "It did not."
    assert "nothing to compare" in headline_sentences(headline)[1]


def test_a_table_takes_no_text_for_markup() -> None:
    assert "[red]" in rendered(table(("a",), [("[red]x",), (None,)]))


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "–"), (0.2, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_a_split_sweep_is_one_step() -> None:
    progress = {"done": 12, "total": 84, "message": "3 of 28 layers", "eta_s": 90.0}
    layer = job("sweep:layer-3", "running", kind="sweep", params={"part_of": "job_sweep"}, progress={"done": 1})
    jobs = [job("sweep", "waiting", params={}, progress=progress), layer, job("fit", "waiting", params={})]
    shown = without_parts(jobs)
    assert [(row["step"], row["state"]) for row in shown] == [("sweep", "running"), ("fit", "waiting")]
    running = Snapshot("study", {"state": "running", "finished_at": None}, shown)
    console = Console(file=io.StringIO(), width=100)
    lines = PlainLines()
    lines.console = console
    lines.show(running)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert told.startswith("  · sweep  12/84, 3 of 28 layers, 1 min 30 s to go")
    assert "layer-3" not in told


def test_a_sweep_that_waits_for_something_else_waits() -> None:
    jobs = [job("sweep", "waiting", params={}, progress={"done": 1, "total": 2}), job("fit", "waiting", params={})]
    assert [row["state"] for row in without_parts(jobs)] == ["waiting", "waiting"]
