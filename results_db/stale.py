"""What was computed from measurements that count no more: found through the rows themselves, then marked.

A fit keeps every error that it was fitted to, so it is found exactly. An allocation keeps the errors of the configs
that it chose, the hashes of those that it chose from, and the largest id of a measurement that it knew: exact up to a
cell measured on two kinds of devices. A gate is marked where a job that it looks at made a marked row, swept a retired
cell, or took something from such a job. docs/decisions/030 has the reasons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Select, or_, select, update
from sqlalchemy.orm import Session

from results_db.clock import utc_now
from results_db.params import MatrixFilter
from results_db.queue.events import record_event
from results_db.queue.inputs import source_jobs
from results_db.tables import Allocation, AllocationItem, Fit, Gate, Job, Sweep

T = TypeVar("T")

#: ids in one IN (…)
_BATCH = 1000
#: kinds that nothing is minimised for, and that the measured errors choose all the same
_DRAWN_FROM_ERRORS = ("random", "near_optimal")


@dataclass(frozen=True, slots=True)
class Gone:
    """A measurement that counts no more."""

    id: int
    model_id: str
    calibration_id: str
    layer_idx: int
    projection: str
    expert_idx: int
    config_hash: str
    b_q: int
    rank: int
    codebook: str
    states: int | None
    factor_bits_l: int
    factor_bits_r: int
    calibration_weighted_error: float
    created_at: datetime
    #: the smallest id that these very numbers had: a forced sweep that finds them again gives them a larger one
    since: int

    @property
    def matrix(self) -> tuple[int, str, int]:
        return (self.layer_idx, self.projection, self.expert_idx)

    def __str__(self) -> str:
        expert = "" if self.expert_idx < 0 else f", expert {self.expert_idx}"
        place = f"layer {self.layer_idx}, {self.projection}{expert}"
        return f"measurement {self.id} ({place}, b_q {self.b_q}, rank {self.rank})"


#: the sentence about these measurements: which they are and what became of them
Tell = Callable[[Sequence[Gone]], str]


@dataclass(frozen=True, slots=True)
class Affected:
    """Rows that stand on measurements which count no more: id → why."""

    fits: Mapping[str, str]
    allocations: Mapping[str, str]
    gates: Mapping[str, str]

    def ids(self) -> dict[str, list[str]]:
        """``{"fits": […], "allocations": […], "gates": […]}``."""
        return {name: sorted(getattr(self, name)) for name in ("fits", "allocations", "gates")}


def teller(verb: str, reason: str) -> Tell:
    """``measurement 17 (layer 3, down, b_q 2, rank 32) and 4 others were invalidated: reason``."""

    def tell(gone: Sequence[Gone]) -> str:
        first, others = min(gone, key=lambda g: g.id), len(gone) - 1
        if not others:
            return f"{first} was {verb}{reason}"
        return f"{first} and {others} {'other' if others == 1 else 'others'} were {verb}{reason}"

    return tell


def find_affected(session: Session, gone: Sequence[Gone], tell: Tell, *, errors_too: bool = True) -> Affected:
    """What stands on these measurements and is not marked yet; reads only.

    Args:
        errors_too: False where a cell's errors and bytes are what they were and only its residual spectrum is another:
            fits alone look at that.
    """
    fits: dict[str, str] = {}
    allocations: dict[str, str] = {}
    by_calibration: dict[tuple[str, str], list[Gone]] = defaultdict(list)
    for one in gone:
        by_calibration[one.model_id, one.calibration_id].append(one)
    made_by: dict[str, str] = {}
    for (model_id, calibration_id), cells in by_calibration.items():
        for fit_id, job_id, hit in _fits(session, model_id, calibration_id, cells):
            fits[fit_id] = tell(hit)
            if job_id is not None:
                made_by[job_id] = f"fit {fit_id} is stale: {fits[fit_id]}"
        if not errors_too:
            continue
        for row, hit in _allocations(session, model_id, calibration_id, cells):
            allocations[row.id] = tell(hit)
            if row.job_id is not None:
                made_by[row.job_id] = f"allocation {row.name} ({row.id}) is stale: {allocations[row.id]}"
        for job_id, hit in _sweeps(session, model_id, calibration_id, cells):
            made_by[job_id] = tell(hit)
    return Affected(fits, allocations, _gates(session, made_by))


def mark_stale(session: Session, affected: Affected) -> None:
    """Write when and why; what was marked before keeps its first reason.

    The jobs that made the rows get a note, so that pages which show them hear of it.
    """
    now = utc_now()
    told: dict[str, str] = {}
    for table, reasons in ((Fit, affected.fits), (Allocation, affected.allocations), (Gate, affected.gates)):
        for id_, reason in sorted(reasons.items()):  # in one order, so that two writers never wait for each other
            marked = session.scalars(
                update(table)
                .where(table.id == id_, table.stale_at.is_(None))
                .values(stale_at=now, stale_reason=reason)
                .returning(table.job_id)
                .execution_options(synchronize_session="fetch")
            ).all()
            told |= {job_id: reason for job_id in marked if job_id is not None and job_id not in told}
    for job_id, reason in told.items():
        record_event(session, session.get_one(Job, job_id), "note", payload={"message": f"stale: {reason}"})


def stale_inputs(session: Session, allocation_ids: Iterable[str | None]) -> list[dict[str, str]]:
    """``[{"allocation_id", "name", "stale_reason"}, …]`` of those that are stale, for whoever builds on them."""
    wanted = [id_ for id_ in dict.fromkeys(allocation_ids) if id_ is not None]
    columns = (Allocation.id, Allocation.name, Allocation.stale_reason)
    query = select(*columns).where(Allocation.stale_at.is_not(None)).order_by(Allocation.id)
    rows = [row for some in batched(wanted) for row in session.execute(query.where(Allocation.id.in_(some)))]
    return [{"allocation_id": row.id, "name": row.name, "stale_reason": row.stale_reason or ""} for row in rows]


def stale_evidence(session: Session, gate_job: Job) -> str | None:
    """Why the gates of a job stand on something stale, through everything that its context was made from."""
    if gate_job.study_id is None:
        return None
    inputs = _inputs_of_studies(session, {gate_job.study_id})
    behind: set[str] = set()
    todo = [id_ for id_ in _strings(gate_job.params.get("context")) if id_ in inputs]
    while todo:
        job_id = todo.pop()
        if job_id not in behind:
            behind.add(job_id)
            todo += source_jobs(inputs[job_id])
    for table, noun in ((Fit, "fit"), (Allocation, "allocation")):
        row = session.execute(
            select(table.id, table.stale_reason)
            .where(table.job_id.in_(behind), table.stale_at.is_not(None))
            .order_by(table.id)
            .limit(1)
        ).first()
        if row is not None:
            return f"{noun} {row.id} is stale: {row.stale_reason}"
    return None


# --- who stands on what --------------------------------------------------------------------------------------------


def _fits(
    session: Session, model_id: str, calibration_id: str, gone: Sequence[Gone]
) -> Iterator[tuple[str, str | None, list[Gone]]]:
    """Those whose residuals name the cell with its very error."""
    codebooks = {one.codebook for one in gone}
    heads = session.execute(
        select(Fit.id, Fit.job_id, Fit.codebook, Fit.states, Fit.factor_bits_l, Fit.factor_bits_r).where(
            Fit.model_id == model_id,
            Fit.calibration_id == calibration_id,
            Fit.codebook.in_(codebooks),
            Fit.stale_at.is_(None),
        )
    ).all()
    for head in heads:
        could = [one for one in gone if _could_be_of(one, head)]
        if not could:
            continue
        # residuals are the bulk of a fit: read one at a time
        rows = session.scalars(select(Fit.residuals).where(Fit.id == head.id)).one()
        names = ("layer_idx", "projection", "expert_idx", "b_q", "rank", "error")
        used = {tuple(row[name] for name in names) for row in rows}
        hit = [one for one in could if (*one.matrix, one.b_q, one.rank, one.calibration_weighted_error) in used]
        if hit:
            yield head.id, head.job_id, hit


def _could_be_of(gone: Gone, fit: Any) -> bool:
    return (gone.codebook, gone.states) == (fit.codebook, fit.states or gone.states) and (
        not gone.rank
        or (fit.factor_bits_l in (None, gone.factor_bits_l) and fit.factor_bits_r in (None, gone.factor_bits_r))
    )


def _allocations(
    session: Session, model_id: str, calibration_id: str, gone: Sequence[Gone]
) -> Iterator[tuple[Any, list[Gone]]]:
    """Those that chose from the cell, or whose prediction counts its error."""
    columns = (
        *(Allocation.id, Allocation.job_id, Allocation.name, Allocation.kind, Allocation.objective),
        *(Allocation.calibration_id, Allocation.created_at),
        # two small parts of the details: a forced sweep asks this for each cell whose numbers are others
        Allocation.details["measured"].label("measured"),
        Allocation.details[("prediction", "calibration_id")].as_string().label("predicted_under"),
    )
    rows = session.execute(
        select(*columns).where(
            Allocation.model_id == model_id,
            # what is given is bound to no calibration and predicted under one all the same
            or_(Allocation.calibration_id == calibration_id, Allocation.calibration_id.is_(None)),
            Allocation.stale_at.is_(None),
        )
    ).all()
    of_it = [row for row in rows if calibration_id in (row.calibration_id, row.predicted_under)]
    chosen = _chosen_errors(session, [row.id for row in of_it], {one.config_hash for one in gone})
    for row in of_it:
        from_menu = _chose_from(row)
        hit = [
            one
            for one in gone
            if (one.matrix, one.config_hash, one.calibration_weighted_error) in chosen[row.id] or from_menu(one)
        ]
        if hit:
            yield row, hit


def _chose_from(allocation: Any) -> Callable[[Gone], bool]:
    """Whether an allocation chose from a cell, be it what it chose or not."""
    if allocation.objective is None and allocation.kind not in _DRAWN_FROM_ERRORS:
        return lambda gone: False
    known = allocation.measured
    if known is None:  # made before this was kept: by the clock, and from anything
        return lambda gone: gone.created_at <= allocation.created_at
    until, hashes = known["until"], frozenset(known["config_hashes"])
    return lambda gone: gone.since <= until and gone.config_hash in hashes


def _chosen_errors(
    session: Session, allocation_ids: Sequence[str], hashes: Collection[str]
) -> dict[str, set[tuple[tuple[int, str, int], str, float]]]:
    """Allocation → (matrix, config_hash, error) of the items that have one of these configs."""
    item = AllocationItem.__table__.c
    found: dict[str, set[tuple[tuple[int, str, int], str, float]]] = defaultdict(set)
    for ids in batched(allocation_ids):
        query: Select[Any] = select(
            item.allocation_id, item.layer_idx, item.projection, item.expert_idx, item.config_hash, item.error
        ).where(item.allocation_id.in_(ids), item.error.is_not(None))
        if len(hashes) <= _BATCH:
            query = query.where(item.config_hash.in_(sorted(hashes)))
        for row in session.execute(query):
            matrix = (row.layer_idx, row.projection, row.expert_idx)
            found[row.allocation_id].add((matrix, row.config_hash, row.error))
    return found


def _sweeps(
    session: Session, model_id: str, calibration_id: str, gone: Sequence[Gone]
) -> Iterator[tuple[str, list[Gone]]]:
    """Jobs of the sweeps that asked for the cell, whoever measured it."""
    rows = session.execute(
        select(Sweep.job_id, Sweep.config_hashes, Job.params)
        .join(Job, Job.id == Sweep.job_id)
        .where(Sweep.model_id == model_id, Sweep.calibration_id == calibration_id, Job.study_id.is_not(None))
    )
    for job_id, config_hashes, params in rows:
        only, hashes = MatrixFilter.model_validate(params.get("matrices") or {}), set(config_hashes)
        hit = [one for one in gone if one.config_hash in hashes and only.passes(one.layer_idx, one.projection)]
        if hit:
            yield job_id, hit


def _gates(session: Session, made_by: Mapping[str, str]) -> dict[str, str]:
    """Gates that look at one of these jobs, or at what was made from what they made: id → why."""
    if not made_by:
        return {}
    found = select(Job.study_id).where(Job.id.in_(made_by), Job.study_id.is_not(None)).distinct()
    studies = {id_ for id_ in session.scalars(found) if id_ is not None}
    touched = dict(made_by)
    inputs = _inputs_of_studies(session, studies)
    grows = True
    while grows:
        grows = False
        for job_id, sources in inputs.items():
            cause = next((id_ for id_ in source_jobs(sources) if id_ in touched), None)
            if cause is not None and job_id not in touched:
                touched[job_id] = touched[cause]
                grows = True
    gates = session.execute(
        select(Gate.id, Job.params)
        .join(Job, Job.id == Gate.job_id)
        .where(Gate.study_id.in_(studies), Gate.stale_at.is_(None))
    )
    causes = {id_: [j for j in _strings(params.get("context")) if j in touched] for id_, params in gates}
    return {id_: touched[jobs[0]] for id_, jobs in causes.items() if jobs}


def _inputs_of_studies(session: Session, study_ids: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """Job → its inputs, of all jobs of these studies, in their order."""
    query = select(Job.id, Job.inputs).where(Job.study_id.in_(study_ids)).order_by(Job.position, Job.id)
    return {id_: inputs for id_, inputs in session.execute(query)}


def batched(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """As many at a time as one IN (…) takes."""
    for start in range(0, len(values), _BATCH):
        yield values[start : start + _BATCH]


def _strings(value: Any) -> Iterator[str]:
    """Every text in a tree."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
