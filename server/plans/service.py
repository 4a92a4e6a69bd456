"""Price the very steps that the study would run (server.studies.plan), and judge whether they fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from compress_core.config import CompressionConfig
from compress_core.plan import ModelShapes, Pricer, Rates, StepPrice, judge
from compress_core.plan.verdict import disk_needed
from results_db.errors import PathNotAllowed, PathNotUsable
from results_db.settings import Settings
from results_db.states import JobKind
from server.plans.machine import this_machine
from server.plans.menus import Menu, menu_of
from server.plans.rates import find_rates, measured_seconds
from server.plans.schemas import (
    Plan,
    PlanFinding,
    PlannedDevice,
    PlannedModel,
    PlannedStep,
    PlanRequest,
    PlanTotals,
)
from server.plans.shapes import shapes_of
from server.studies.plan import anchors, plan_study
from server.studies.schemas import StudyConfig
from server.studies.steps import Step, conditional_steps

#: seconds of a fit, an allocation, a gate in the server (benchmarks/results/allocate-cpu.md: the largest below one)
_SERVER_STEP_S = 1.0
#: tokens of a text whose size is not known: about WikiText-2's test set
_TOKENS = 300_000
#: bytes of a token, and the share of a text that its report split holds
_TOKEN_BYTES, _REPORT_SHARE = 4, 0.1
#: bytes of a value
_SIZES = {"float32": 4, "bfloat16": 2}
#: rows of a plan, in the order in which a study comes to them
_ORDER = ("fetch", "calibrate", "sensitivity", "sweep", "validate", "compress", "evaluate", "fit, allocate, gate")


def make_plan(session: Session, request: PlanRequest, settings: Settings) -> Plan:
    """The plan of a study.

    Raises:
        Problem: the model or the device is not known.
        CompressCoreError, PathNotAllowed: the model's folder cannot be read.
    """
    shapes, fetch = shapes_of(session, request.config.model, settings)
    rates = find_rates(session, request.device)
    steps = plan_study(request.config, "planned", fetch=fetch)
    on_card = rates is not None and rates.device_kind == "cuda"
    pricer = Pricer(
        shapes,
        rates,
        measured_seconds(session, rates),
        on_card=on_card,
        observed_size=_SIZES[request.config.calibration.dtype],
    )
    priced = _Priced(request.config, shapes, pricer, {step.name: step for step in steps}, settings)
    rows = priced.rows(steps)
    machine = this_machine(settings, rates)
    findings = judge([price for price, _ in rows], machine)
    return Plan(
        model=PlannedModel(
            name=shapes.name,
            origin=shapes.origin,
            n_layers=shapes.n_layers,
            n_matrices=len(shapes.matrices),
            n_weights=shapes.n_weights,
            original_bytes=shapes.original_bytes,
        ),
        device=_device(request.device, rates, pricer, machine.memory),
        steps=_steps(rows, rates),
        totals=_totals(rows, rates, pricer, request.config.grid.configs()),
        fits=not findings,
        findings=[PlanFinding.model_validate(finding.to_dict()) for finding in findings],
        notes=[*priced.notes, *_notes(pricer, rates)],
        probe=probe_params(request.config),
    )


class _Priced:
    """Prices every step of a study, merged by what they are."""

    def __init__(
        self, config: StudyConfig, shapes: ModelShapes, pricer: Pricer, steps: dict[str, Step], settings: Settings
    ) -> None:
        self.config, self.shapes, self.pricer, self.steps, self.settings = config, shapes, pricer, steps, settings
        self.conditional = conditional_steps(steps.values())
        self.notes: list[str] = []
        #: tokens of a calibration that keeps no Hessians: every job that needs them observes anew
        self.again = 0
        self.length = config.calibration.length

    def rows(self, steps: Sequence[Step]) -> list[tuple[StepPrice, int]]:
        """One price a kind of step, and its number of jobs."""
        merged: dict[str, tuple[StepPrice, int]] = {}
        extra: list[float | None] = []
        for step in steps:
            price = self._price(step)
            if step.name in self.conditional:
                extra.append(price.seconds)
                price = replace(price, count=0, seconds=0.0, disk=0)
            before = merged.get(price.step)
            merged[price.step] = (price, 1) if before is None else (_add(before[0], price), before[1] + 1)
        known = [seconds for seconds in extra if seconds is not None]
        if extra and len(known) == len(extra):
            minutes = sum(known) * _load(self.pricer.rates) / 60
            self._note(
                "not counted: where predicted KL turns out not to hold, sensitivities are measured again at the "
                f"optimum, which takes {minutes:.2g} minutes at all budgets together"
            )
        return [merged[name] for name in _ORDER if name in merged]

    def _price(self, step: Step) -> StepPrice:
        params = step.params
        match step.kind:
            case JobKind.FETCH:
                return StepPrice("fetch", "models", 1, None, disk=self.shapes.original_bytes)
            case JobKind.CALIBRATE:
                windows = params["windows"]
                keeps = params.get("keep", "hessians") == "hessians"
                self.again = 0 if keeps else windows["count"] * windows["length"]
                return self.pricer.calibrate(windows["count"], windows["length"], keeps_hessians=keeps)
            case JobKind.SENSITIVITY:
                windows, methods = params["windows"], params.get("methods", [])
                at = anchors(self.config)
                return self.pricer.sensitivity(
                    # at an incumbent each matrix is restored once
                    at[-1:] if "incumbent_allocation_id" in step.inputs else at,
                    windows["count"],
                    windows["length"],
                    observed_tokens=self.again,
                    noises=len(params.get("noise", [])) if "higgs" in methods else 0,
                    gradients=sum(method.startswith("fisher") for method in methods),
                )
            case JobKind.SWEEP:
                configs = [CompressionConfig.from_dict(fields) for fields in params["configs"]]
                return self.pricer.sweep(configs, observed_tokens=self.again, length=self.length)
            case JobKind.COMPRESS:
                (source,) = step.sources_of("allocation_id")
                menu = self._menu(self.steps[source.step])
                return self.pricer.compress(menu.configs, menu.nbytes, observed_tokens=self.again, length=self.length)
            case JobKind.VALIDATE:
                menu, windows = self._menu(step), params["windows"]
                return self.pricer.validate(
                    menu.configs,
                    menu.per_matrix,
                    menu.count,
                    windows["count"],
                    windows["length"],
                    observed_tokens=self.again,
                )
            case JobKind.EVALUATE:
                return self.pricer.evaluate(
                    self._windows(params), params["windows"]["length"], packed="compression_id" in step.inputs
                )
        return StepPrice("fit, allocate, gate", "server steps", 1, _SERVER_STEP_S)

    def _menu(self, step: Step) -> Menu:
        return menu_of(step, self.steps, self.shapes, scope=self.config.scope)

    def _windows(self, params: dict[str, Any]) -> int:
        """How many windows an evaluation has; of a text that is counted nowhere, by its size."""
        windows, text = params["windows"], params["text"]
        if windows["count"] is not None:
            return int(windows["count"])
        path = text.get("path")
        nbytes = self._size(path) if text["kind"] == "file" else None
        if nbytes is None:
            name = path or text["kind"]
            self._note(f"{name}: its size is not known here; {_TOKENS:,} tokens were assumed")
            return max(1, _TOKENS // int(windows["length"]))
        share = 1.0 if params["split"] == "whole" else _REPORT_SHARE
        self._note(f"{path}: a token was taken as {_TOKEN_BYTES} bytes of text")
        return max(1, round(nbytes * share / _TOKEN_BYTES) // int(windows["length"]))

    def _size(self, path: str | None) -> int | None:
        if path is None:
            return None
        try:
            found: Path = self.settings.resolve_path(path)
        except (PathNotAllowed, PathNotUsable):
            return None  # a plan does not need the text; submitting the study says what is wrong with it
        return found.stat().st_size if found.is_file() else None

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _add(one: StepPrice, other: StepPrice) -> StepPrice:
    """Two steps of a kind, one after the other."""

    def most(a: int | None, b: int | None) -> int | None:
        return max((value for value in (a, b) if value is not None), default=None)

    return replace(
        one,
        count=one.count + other.count,
        seconds=None if one.seconds is None or other.seconds is None else one.seconds + other.seconds,
        memory=most(one.memory, other.memory),
        device_memory=most(one.device_memory, other.device_memory),
        disk=one.disk + other.disk,
        scratch=max(one.scratch, other.scratch),
    )


def _load(rates: Rates | None) -> float:
    """How much longer things take than on a machine that does nothing else."""
    return 1.0 if rates is None or not rates.busy else max(1.0, 1 / rates.busy)


def _steps(rows: Iterable[tuple[StepPrice, int]], rates: Rates | None) -> list[PlannedStep]:
    priced = list(rows)
    total = _idle_seconds([price for price, _ in priced])
    return [
        PlannedStep(
            step=price.step,
            unit=price.unit,
            count=price.count,
            jobs=jobs,
            seconds=None if price.seconds is None else price.seconds * _load(rates),
            share=price.seconds / total if price.seconds is not None and total else None,
            memory=price.memory,
            device_memory=price.device_memory,
            disk=price.disk,
            scratch=price.scratch,
            largest=price.largest,
        )
        for price, jobs in priced
    ]


def _idle_seconds(prices: Iterable[StepPrice]) -> float | None:
    """Of all steps but a download, which is as fast as the network; None where one is not priced."""
    known = [price.seconds for price in prices if price.step != "fetch"]
    return None if None in known else sum(seconds for seconds in known if seconds is not None)


def _totals(
    rows: Sequence[tuple[StepPrice, int]], rates: Rates | None, pricer: Pricer, grid: Sequence[CompressionConfig]
) -> PlanTotals:
    prices = [price for price, _ in rows]
    cells = sum(price.count for price in prices if price.step == "sweep")
    idle = _idle_seconds(prices)
    seconds = None if idle is None else idle * _load(rates)
    spread = pricer.uncertainty
    return PlanTotals(
        jobs=sum(jobs for _, jobs in rows),
        cells=cells,
        grid_cells=pricer.cells(grid) if cells else 0,
        seconds=seconds,
        idle_seconds=idle,
        low_seconds=None if seconds is None or spread is None else seconds / spread,
        high_seconds=None if seconds is None or spread is None else seconds * spread,
        memory=max((price.memory for price in prices if price.memory is not None), default=None),
        device_memory=max((price.device_memory for price in prices if price.device_memory is not None), default=None),
        disk=disk_needed(prices),
    )


def _device(asked: str | None, rates: Rates | None, pricer: Pricer, memory: int | None) -> PlannedDevice:
    if rates is None:
        return PlannedDevice(
            name=asked or "cpu",
            kind="cpu",
            source="unknown",
            uncertainty=None,
            busy=None,
            memory=memory,
            device_memory=None,
        )
    return PlannedDevice(
        name=rates.device_name,
        kind=rates.device_kind,
        source=rates.source,
        uncertainty=pricer.uncertainty,
        busy=rates.busy,
        memory=memory,
        device_memory=rates.device_memory,
    )


def _notes(pricer: Pricer, rates: Rates | None) -> list[str]:
    if rates is None:
        return ["nothing was measured on this machine yet: there are no times. `bitbudget plan --measure` measures it"]
    notes = list(rates.notes)
    if rates.busy is not None and rates.busy < 0.9:
        notes.append(f"the probe had {rates.busy:.0%} of the processor: times are of a machine as busy as that")
    if pricer.extrapolates:
        notes.append(
            f"the matrices are up to {pricer.extrapolates:.0f} times as large as those that were timed: what they take "
            f"is told from how the method grows, and may be off by a factor of {pricer.uncertainty:.1f}"
        )
    if pricer.unpriced:
        notes.append(
            f"not measured on {rates.device_name}: {', '.join(sorted(pricer.unpriced))}. `bitbudget plan --measure` "
            "measures them"
        )
    if pricer.n_known:
        notes.append(f"{pricer.n_known:,} cells are priced by what the database holds of such cells")
    return notes


def probe_params(config: StudyConfig) -> dict[str, Any]:
    """What has to be measured for this study: its grid's bits with its least and largest rank, anchors, baselines."""
    grid = config.grid
    ranks = sorted({min(grid.rank), max(grid.rank)})
    configs = [grid.complete({"b_q": b_q, "rank": rank}) for b_q in sorted(grid.b_q) for rank in ranks]
    configs += anchors(config)
    configs += [menu[0] for menu in config.baselines.menus().values()]
    return {"configs": [config.to_dict() for config in dict.fromkeys(configs)]}
