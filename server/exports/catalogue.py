"""What can be exported: a name for each table that holds results, and the columns that its files have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args, get_type_hints

from sqlalchemy import inspect
from sqlalchemy.orm import InstrumentedAttribute

from results_db import tables
from results_db.base import Base


@dataclass(frozen=True)
class Export:
    """One table; ``hidden`` columns are nobody's business."""

    name: str
    table: type[Base]
    hidden: frozenset[str] = frozenset()
    #: rows read at once, where one may hold megabytes of JSON; None = as many as of any table
    batch: int | None = None

    @property
    def description(self) -> str:
        """What a row is."""
        return (self.table.__doc__ or "").strip().splitlines()[0].replace("``", "")

    @cached_property
    def columns(self) -> dict[str, ColumnKind]:
        """Name → kind, in the order of the file."""
        hints = get_type_hints(self.table)
        names = [c.key for c in self.table.__mapper__.column_attrs if c.key not in self.hidden]
        return {name: _kind(get_args(hints[name])[0]) for name in names}

    @property
    def key(self) -> InstrumentedAttribute[Any]:
        """The primary key: rows come in its order."""
        return self.column(str(inspect(self.table).primary_key[0].key))

    def column(self, name: str) -> InstrumentedAttribute[Any]:
        """The column of this name."""
        found: InstrumentedAttribute[Any] = getattr(self.table, name)
        return found


@dataclass(frozen=True, slots=True)
class ColumnKind:
    """``int``, ``float``, ``str``, ``bool``, ``datetime`` or ``json`` (an object or a list)."""

    type: str
    nullable: bool

    def __str__(self) -> str:
        """As files and lists tell it: ``?`` = may be null."""
        return self.type + ("?" if self.nullable else "")


def _kind(annotation: Any) -> ColumnKind:
    kinds = [part for part in (get_args(annotation) or (annotation,)) if part is not type(None)]
    nullable = type(None) in get_args(annotation)
    # dict[str, Any] and list[Any] have arguments of their own
    if getattr(annotation, "__origin__", None) in (dict, list) or any(hasattr(kind, "__origin__") for kind in kinds):
        return ColumnKind("json", nullable)
    return ColumnKind(kinds[0].__name__, nullable)


#: residuals of a fit, details of an allocation, matrices of a model: up to megabytes a row
_FEW = 20

EXPORTS: dict[str, Export] = {
    export.name: export
    for export in (
        Export("models", tables.Model, batch=_FEW),
        Export("calibrations", tables.Calibration),
        Export("sweeps", tables.Sweep),
        Export("measurements", tables.Measurement),
        Export("retired_measurements", tables.RetiredMeasurement),
        Export("sensitivities", tables.SensitivityEstimate),
        Export("sensitivity_anchors", tables.SensitivityAnchor),
        Export("layer_fidelities", tables.LayerFidelityRow),
        Export("fits", tables.Fit, batch=_FEW),
        Export("fit_parameters", tables.FitParameter),
        Export("allocations", tables.Allocation, batch=_FEW),
        Export("allocation_choices", tables.AllocationItem),
        Export("compressions", tables.Compression),
        Export("evaluations", tables.Evaluation),
        Export("evaluation_items", tables.EvaluationItem),
        Export("validations", tables.Validation),
        Export("validation_items", tables.ValidationItem),
        Export("validation_windows", tables.ValidationWindow),
        Export("studies", tables.Study),
        Export("gates", tables.Gate),
        Export("jobs", tables.Job),
        Export("attempts", tables.Attempt, hidden=frozenset({"lease_token"})),
        Export("job_events", tables.JobEvent),
        Export("throughputs", tables.Throughput),
    )
}
