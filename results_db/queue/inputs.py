"""Parameters that a waiting job takes from the results of the jobs before it.

``jobs.inputs`` maps a parameter to one of::

    {"job": id, "key": key}              one value; with "optional": true the job also runs where there is none
    [{"job": …, "key": …}, …]            a list: what is a list itself gives its elements, what is not there is left out
    {"first": [{"job": …, "key": …}, …]} the first that is there

The name ``only_if`` is no parameter: the job runs where that value is true, and is skipped as not needed otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from results_db.tables import Job

ONLY_IF = "only_if"


def resolve_inputs(inputs: Mapping[str, Any], jobs: Mapping[str, Job]) -> dict[str, Any]:
    """The parameters; null where a dependency did not succeed.

    Args:
        jobs: the jobs that the inputs name, by id.
    """
    return {name: _value(source, jobs) for name, source in inputs.items() if name != ONLY_IF}


def not_needed(inputs: Mapping[str, Any], jobs: Mapping[str, Job]) -> str | None:
    """Why the job need not run; None where it must."""
    source = inputs.get(ONLY_IF)
    if source is None or _value(source, jobs):
        return None
    job = jobs[source["job"]]
    return f"not needed: {job.step or job.kind} ({job.id}) says {source['key']}: no"


def can_do_without(inputs: Mapping[str, Any]) -> set[str]:
    """Ids of jobs that all inputs which name them call optional."""
    optional: dict[str, bool] = {}
    for source in inputs.values():
        for one in _sources(source):
            optional[one["job"]] = optional.get(one["job"], True) and bool(one.get("optional"))
    return {job_id for job_id, is_optional in optional.items() if is_optional}


def source_jobs(inputs: Mapping[str, Any]) -> list[str]:
    """Ids of the jobs that anything is taken from, each once."""
    return list(dict.fromkeys(one["job"] for source in inputs.values() for one in _sources(source)))


def _sources(source: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(source, list):
        yield from source
    elif "first" in source:
        yield from source["first"]
    else:
        yield source


def _value(source: Any, jobs: Mapping[str, Job]) -> Any:
    if isinstance(source, list):
        found = [_one(one, jobs) for one in source]
        flat = [x for value in found for x in (value if isinstance(value, list) else [value])]
        # two steps may end in one and the same row
        return list(dict.fromkeys(x for x in flat if x is not None))
    if "first" in source:
        return next((value for one in source["first"] if (value := _one(one, jobs)) is not None), None)
    return _one(source, jobs)


def _one(source: Mapping[str, Any], jobs: Mapping[str, Job]) -> Any:
    return (jobs[source["job"]].result or {}).get(source["key"])
