"""Options that say which rows are meant: each list of them stands once, whichever commands take it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

#: the API's name of a filter -> the option
MEASUREMENT_FILTERS: Mapping[str, Any] = {
    "model_id": Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Only of this model's id.")],
    "calibration_id": Annotated[
        str | None, typer.Option("--calibration", metavar="CALIBRATION", help="Only under this one.")
    ],
    "sweep_id": Annotated[str | None, typer.Option("--sweep", metavar="SWEEP", help="Only those that it measured.")],
    "layer_idx": Annotated[int | None, typer.Option("--layer", min=0, help="Only of this layer.")],
    "projection": Annotated[
        str | None, typer.Option("--projection", help="Only of this one: q, k, v, o, gate, up, down.")
    ],
    "b_q": Annotated[int | None, typer.Option("--bits", "--b-q", help="Only with this b_q.")],
    "rank": Annotated[int | None, typer.Option("--rank", min=0, help="Only of this rank.")],
    "codebook": Annotated[
        str | None, typer.Option("--codebook", help="Only of this one: trellis, e8, scalar, raw, rtn, gptq.")
    ],
    "states": Annotated[int | None, typer.Option("--states", help="Only of a trellis of so many states.")],
}
EXPORT_FILTERS: Mapping[str, Any] = {
    "study_id": Annotated[str | None, typer.Option("--study", metavar="STUDY", help="Only of this study.")],
    **MEASUREMENT_FILTERS,
}
JOB_FILTERS: Mapping[str, Any] = {
    "state": Annotated[list[str] | None, typer.Option("--state", help="All in this state; again for more.")],
    "kind": Annotated[list[str] | None, typer.Option("--kind", help="All of this kind; again for more.")],
    "study_id": Annotated[str | None, typer.Option("--study", metavar="STUDY", help="All of this study.")],
}


def taking(filters: Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function with a parameter ``only`` a command that takes these options in its place.

    ``only`` is then {the API's name: value} of what was given.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            asked = {name: given.pop(name) for name in filters}
            # an option that may be repeated and was not given is an empty list
            command(only={name: value for name, value in asked.items() if value not in (None, [])}, **given)

        own = inspect.signature(command, eval_str=True)
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
            for name, option in filters.items()
        ]
        parameters = [
            option
            for parameter in own.parameters.values()
            for option in (
                options if parameter.name == "only" else [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
            )
        ]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate
