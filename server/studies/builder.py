"""StudySteps: collects the steps of a study; every step waits for the gate of the phase before."""

from __future__ import annotations

from typing import Any

from results_db.params import TextSpec
from results_db.states import JobKind
from server.studies.schemas import StudyConfig
from server.studies.steps import Input, Source, Step

_CALIBRATION = Source("calibrate", "calibration_id")
#: kinds of allocations that look at no measured error
_GIVEN = frozenset({"uniform"})


class StudySteps:
    """The steps so far, and how each kind of them is put together."""

    def __init__(self, config: StudyConfig, model_id: str, *, fetch: bool) -> None:
        self.config = config
        self.model_id = model_id
        self.fetch = fetch
        self.steps: list[Step] = []
        #: the last gate: what comes later waits for it
        self._gate: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether there is a step of that name."""
        return any(step.name == name for step in self.steps)

    def config_fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A config, completed from the grid."""
        return self.config.grid.complete(fields).to_dict()

    # --- kinds of steps

    def fetch_model(self, phase: int) -> None:
        """The download of a hub model."""
        self._add("fetch", JobKind.FETCH, phase, {"model_id": self.model_id})

    def calibrate(self, phase: int) -> None:
        """The Hessians."""
        c = self.config.calibration
        windows = {"length": c.length, "count": c.samples, "seed": c.seed}
        how = {"text": self.config.text.model_dump(), "windows": windows, "dtype": c.dtype, "keep": c.keep}
        self.job("calibrate", JobKind.CALIBRATE, phase, how)

    def sensitivity(self, name: str, phase: int, params: dict[str, Any], inputs: dict[str, Input]) -> None:
        """Nats of KL per unit of error; ``params`` and ``inputs`` say by which methods."""
        s = self.config.sensitivity
        shared = {
            "text": self.config.text.model_dump(),
            "windows": {"length": s.length, "count": s.samples, "seed": s.seed},
        }
        self.job(name, JobKind.SENSITIVITY, phase, shared | params, {"calibration_id": _CALIBRATION} | inputs)

    def sweep(self, params: dict[str, Any]) -> None:
        """The errors of all configs."""
        self.job("sweep", JobKind.SWEEP, 1, params, {"calibration_id": _CALIBRATION})

    def fit(self, params: dict[str, Any]) -> None:
        """The error model."""
        self.job("fit", JobKind.FIT, 2, params, {"calibration_id": _CALIBRATION}, after=("sweep",))

    def allocate(self, name: str, phase: int, params: dict[str, Any], inputs: dict[str, Input] | None = None) -> None:
        """One allocation, or several of a kind; ``name`` is theirs too."""
        inputs = dict(inputs or {})
        if params["kind"] not in _GIVEN:
            inputs["calibration_id"] = _CALIBRATION
        measured = tuple(step for step in ("sweep", "sensitivity") if self.has(step))
        shared = {"name": name, "scope": self.config.scope}
        self.job(f"allocate:{name}", JobKind.ALLOCATE, phase, shared | params, inputs, after=measured)

    def validate(self, name: str, phase: int, params: dict[str, Any], inputs: dict[str, Input]) -> None:
        """Joint KL and perplexity of allocations on the select split."""
        v = self.config.validation
        shared = {
            "name": name,
            "text": self.config.text.model_dump(),
            "split": "select",
            "windows": {"length": v.length, "count": v.windows, "seed": v.seed},
        }
        self.job(
            f"validate:{name}", JobKind.VALIDATE, phase, shared | params, {"calibration_id": _CALIBRATION} | inputs
        )

    def compress(self, name: str, phase: int) -> None:
        """The packed model of an allocation."""
        inputs: dict[str, Input] = {
            "calibration_id": _CALIBRATION,
            "allocation_id": Source(f"allocate:{name}", "allocation_id"),
        }
        self.job(f"compress:{name}", JobKind.COMPRESS, phase, {}, inputs)

    def evaluate(self, name: str, dataset: str, text: TextSpec, phase: int, *, split: str) -> None:
        """Perplexity of a packed model, or of the original."""
        e = self.config.evaluation
        params = {
            "task": "perplexity",
            "text": text.model_dump(),
            "split": split,
            "windows": {"length": e.length, "count": e.windows, "seed": e.seed},
        }
        inputs: dict[str, Input] = {}
        if name != "original":
            inputs["compression_id"] = Source(f"compress:{name}", "compression_id")
        self.job(f"evaluate:{name}:{dataset}", JobKind.EVALUATE, phase, params, inputs)

    def gate(self, name: str, phase: int, gates: list[str], context: dict[str, Any]) -> None:
        """Criteria of a phase; what comes later waits for them."""
        looked_at = tuple(dict.fromkeys(_leaves(context)))
        self._add(
            name,
            JobKind.GATE,
            phase,
            {"phase": phase, "gates": gates},
            after=(*self._gate, *looked_at),
            run_when="finished",
            context=context,
        )
        self._gate = (name,)

    # --- their parts

    def job(
        self,
        name: str,
        kind: JobKind,
        phase: int,
        params: dict[str, Any],
        inputs: dict[str, Input] | None = None,
        *,
        after: tuple[str, ...] = (),
    ) -> None:
        """A step that works on the model."""
        inputs = dict(inputs or {})
        params = dict(params)
        if self.fetch:
            # fetching may find that the same weights are known as another model
            inputs["model_id"] = Source("fetch", "model_id")
        else:
            params["model_id"] = self.model_id
        self._add(name, kind, phase, params, inputs, after=(*self._gate, *after))

    def _add(
        self,
        name: str,
        kind: JobKind,
        phase: int,
        params: dict[str, Any],
        inputs: dict[str, Input] | None = None,
        *,
        after: tuple[str, ...] = (),
        run_when: str = "succeeded",
        context: dict[str, Any] | None = None,
    ) -> None:
        self.steps.append(Step(name, kind, phase, params, inputs or {}, after, run_when, context or {}))


def _leaves(context: dict[str, Any]) -> list[str]:
    """Every step that a gate's context names."""
    return [leaf for value in context.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]
