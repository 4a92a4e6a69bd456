"""Three ways to show progress: a live display for a terminal, lines for a log, silence for programs."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.output import duration, err
from cli.watch.estimate import FINISHED, fraction, overall_fraction, remaining_seconds, seconds_of
from cli.watch.follow import Presenter
from cli.watch.snapshot import Snapshot

_MARKS = {
    "succeeded": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "dead": ("✗", "bold red"),
    "cancelled": ("–", "yellow"),
    "skipped": ("–", "yellow"),
}
VERDICT_STYLES = {"GO": "green", "NO-GO": "bold red", "NOT DECIDABLE": "yellow", "NOT MEASURED": "yellow"}
#: seconds between lines about the same running job
_LINE_EVERY_S = 10.0


def presenter(*, quiet: bool) -> Presenter:
    """What suits stderr: live on a terminal, else plain lines; nothing when quiet."""
    if quiet:
        return Quiet()
    return LiveProgress() if sys.stderr.isatty() else PlainLines()


class Quiet:
    """Shows nothing."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def show(self, snapshot: Snapshot) -> None:
        return None

    def note(self, message: str) -> None:
        return None


class _Steps:
    """Prints each step once, when it has finished."""

    def __init__(self) -> None:
        self.console: Console = err()
        self._told: set[str] = set()

    def tell_finished(self, snapshot: Snapshot) -> None:
        for job in snapshot.jobs:
            if job["state"] in FINISHED and job["id"] not in self._told:
                self._told.add(job["id"])
                self.console.print(_finished_line(job, max(len(_name(other)) for other in snapshot.jobs)))

    def note(self, message: str) -> None:
        self.console.print(Text(message, style="yellow"))


class PlainLines(_Steps):
    """One line for each change and, for what runs long, every ten seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._spoken: dict[str, float] = {}

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def show(self, snapshot: Snapshot) -> None:
        self.tell_finished(snapshot)
        now = time.monotonic()
        for job in snapshot.jobs:
            due = now - self._spoken.get(job["id"], -_LINE_EVERY_S) >= _LINE_EVERY_S
            if job["state"] == "running" and due:
                self._spoken[job["id"]] = now
                self.console.print(Text(f"  · {_name(job)}  {_progress_text(job)}; {_overall_text(snapshot)}"))


class LiveProgress(_Steps):
    """Finished steps scroll up; below them the running ones and the whole, each with a bar and a time to go."""

    def __init__(self) -> None:
        super().__init__()
        self._live = Live(console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        self.tell_finished(snapshot)
        rows = Table.grid(padding=(0, 1))
        for job in snapshot.jobs:
            if job["state"] == "running":
                rows.add_row(Text(_name(job)), _bar(fraction(job)), Text(_progress_text(job)))
        waiting = sum(job["state"] in ("waiting", "queued") for job in snapshot.jobs)
        paused = sum(job["state"] == "paused" for job in snapshot.jobs)
        if snapshot.noun == "study":
            done = sum(job["state"] in FINISHED for job in snapshot.jobs)
            rest = f"{done}/{len(snapshot.jobs)} steps, {_overall_text(snapshot)}"
            rows.add_row(Text("whole study", style="bold"), _bar(overall_fraction(snapshot.jobs)), Text(rest))
        elif waiting:
            rows.add_row(Text(_name(snapshot.row)), _bar(0.0), Text(snapshot.row["state"]))
        hint = Text(f"{paused} paused: bitbudget jobs resume ID", style="yellow") if paused else Text("")
        self._live.update(Group(rows, hint))


def _bar(share: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=share, width=28)


def _name(job: dict[str, Any]) -> str:
    return str(job.get("step") or job["kind"])


def _progress_text(job: dict[str, Any]) -> str:
    progress = job.get("progress") or {}
    parts = [f"{progress['done']}/{progress['total']}"] if progress.get("total") else ["started"]
    if progress.get("message"):
        parts.append(str(progress["message"]))
    if progress.get("eta_s") is not None:
        parts.append(f"{duration(progress['eta_s'])} to go")
    return ", ".join(parts)


def _overall_text(snapshot: Snapshot) -> str:
    left = remaining_seconds(snapshot.jobs)
    return "time to go not known yet" if left is None else f"about {duration(left)} to go"


def _finished_line(job: dict[str, Any], width: int) -> Text:
    mark, style = _MARKS[job["state"]]
    line = Text.assemble("  ", (mark, style), f" {_name(job):<{width}} ")
    if job["state"] != "succeeded":
        return line.append(f"{job['state']}{_reason(job)}", style=style)
    line.append(f"{duration(seconds_of(job)):>10}  ")
    verdicts = (job.get("result") or {}).get("verdicts")
    if isinstance(verdicts, dict):
        for index, (name, verdict) in enumerate(verdicts.items()):
            line.append(f"{', ' if index else ''}{name}: ").append(verdict, style=VERDICT_STYLES.get(verdict, ""))
        return line
    return line.append(_result_text(job))


def _reason(job: dict[str, Any]) -> str:
    error = job.get("error") or {}
    message = error.get("message") or error.get("code")
    return f": {message}" if message else ""


def _result_text(job: dict[str, Any]) -> str:
    """What a step brought, in a few words."""
    result = job.get("result") or {}
    parts: list[str] = []
    if result.get("recorded") is not None:
        parts.append(f"{result['recorded']} measured")
    reused = result.get("reused")
    if reused is True:
        parts.append("reused")
    elif reused:
        parts.append(f"{reused} reused")
    if result.get("actual_bytes") is not None:
        parts.append(f"{result['actual_bytes']:,} bytes")
    if result.get("total_bytes") is not None:
        parts.append(f"{result['total_bytes']:,} bytes")
    if job["kind"] == "evaluate" and result.get("value") is not None:
        parts.append(f"PPL {result['value']:.4g}")
    if result.get("spearman") is not None:
        parts.append(f"predictions rank with ρ = {result['spearman']:.2f}")
    if result.get("r2") is not None:
        parts.append(f"R² {result['r2']:.3f}")
    return ", ".join(parts)
