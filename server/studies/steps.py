"""Step: one job of a study before it has an id, and what its parameters are taken from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from compress_core.config import BASELINE_CODEBOOKS
from results_db.queue.inputs import ONLY_IF
from results_db.states import JobKind

OPTIMAL, UNIFORM, RANK0, MANUAL = "optimal", "uniform", "rank0", "manual"
#: the best uniform candidates, random allocations of the same bytes, the second optimum, and what is kept of all
UNIFORMS, RANDOM, REANCHORED, CHOSEN = "uniforms", "random", "reanchored", "chosen"
#: allocations that optimal is compared with besides uniform; a baseline is named after its codebook
RIVALS = (RANK0, MANUAL, *BASELINE_CODEBOOKS)
PHASE0_UNIFORM, PHASE0_MANUAL = "phase0-uniform", "phase0-manual"


class Source(NamedTuple):
    """A value in the result of an earlier step."""

    step: str
    key: str
    #: whether the job also runs where that step did not succeed
    optional: bool = False


class FirstOf(NamedTuple):
    """The first of several that is there."""

    sources: tuple[Source, ...]


#: a list gathers the values of all its sources
Input = Source | FirstOf | list[Source]


@dataclass(frozen=True, slots=True)
class Step:
    """One job of a study."""

    name: str
    kind: JobKind
    phase: int
    params: dict[str, Any]
    #: parameters taken from the results of earlier steps; under ``only_if``: whether the job is needed at all
    inputs: dict[str, Input] = field(default_factory=dict)
    #: steps that must end first, besides those of ``inputs``
    after: tuple[str, ...] = ()
    #: a gate runs whatever became of the steps before it
    run_when: str = "succeeded"
    #: gates only: names of steps whose jobs it looks at
    context: dict[str, Any] = field(default_factory=dict)

    @property
    def depends_on(self) -> tuple[str, ...]:
        """Every step that must end before this one begins."""
        return tuple(dict.fromkeys([*self.after, *(source.step for source in self.sources())]))

    def sources(self) -> Iterator[Source]:
        """Every value that is taken from an earlier step."""
        for value in self.inputs.values():
            yield from _sources(value)

    def sources_of(self, name: str) -> tuple[Source, ...]:
        """Where one of the parameters is taken from."""
        return _sources(self.inputs[name])

    def placeholders(self) -> dict[str, Any]:
        """Something of the right shape for each parameter that is known only later."""
        return {
            name: ["known later"] if isinstance(value, list) else "known later"
            for name, value in self.inputs.items()
            if name != ONLY_IF
        }

    def stored_inputs(self, ids: Mapping[str, str]) -> dict[str, Any]:
        """The inputs as the queue reads them (``results_db.queue.inputs``).

        Args:
            ids: of the jobs, by the names of their steps.
        """
        return {name: _stored(value, ids) for name, value in self.inputs.items()}


def budget_suffix(position: int) -> str:
    """ "" for the first budget, "@2" for the second."""
    return "" if position == 0 else f"@{position + 1}"


def conditional_steps(steps: Iterable[Step]) -> set[str]:
    """Names of the steps that may turn out not to be needed, and of what needs them; ``steps`` in order."""
    found: set[str] = set()
    for step in steps:
        needs = {source.step for source in step.sources() if not source.optional}
        if ONLY_IF in step.inputs or needs & found:
            found.add(step.name)
    return found


def _sources(value: Input) -> tuple[Source, ...]:
    match value:
        case Source():
            return (value,)
        case FirstOf():
            return value.sources
        case _:
            return tuple(value)


def _stored(value: Input, ids: Mapping[str, str]) -> Any:
    match value:
        case Source():
            return {"job": ids[value.step], "key": value.key} | ({"optional": True} if value.optional else {})
        case FirstOf():
            return {"first": [_stored(source, ids) for source in value.sources]}
        case _:
            return [_stored(source, ids) for source in value]
