"""`bitbudget allocate` and `bitbudget frontier`: where to spend the bytes of a measured model."""

from __future__ import annotations

import secrets
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.text import Text

from cli.allocation_table import allocation_sentences, allocation_table, frontier_table, uniform_table
from cli.api import Api
from cli.errors import CliError
from cli.options import JsonOption, ServerOption, connect
from cli.output import out, print_json, say
from cli.study_file import parse_assignment, resolve, set_value
from compress_core.strict_yaml import load_yaml


class Kind(StrEnum):
    """Kinds that a budget alone says enough for."""

    OPTIMAL = "optimal"
    GREEDY = "greedy"
    MINIMAX = "minimax"
    DISCRETISED_DP = "discretised_dp"
    BEST_UNIFORM = "best_uniform"
    UNIFORMS = "uniforms"
    RANDOM = "random"


class Objective(StrEnum):
    KL = "kl"
    ERROR = "error"
    HIGGS = "higgs"
    FISHER_DIAGONAL = "fisher_diagonal"
    FISHER_OUTPUT = "fisher_output"
    REANCHORED = "reanchored"


class Scope(StrEnum):
    DECODER = "decoder"
    MODEL = "model"


ModelOption = Annotated[
    str, typer.Option("--model", metavar="PATH|ID", help="The measured model: its folder, or its id.")
]
ObjectiveOption = Annotated[
    Objective, typer.Option(help="What is minimised: predicted KL, plain error, or another method's sensitivities.")
]
ScopeOption = Annotated[
    Scope, typer.Option(help="What the budget counts: the compressed matrices (decoder), or every stored byte (model).")
]
ConstraintsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.yaml", help="Pins, vetoes, limits, groups, max_configs.", exists=True, dir_okay=False),
]
CalibrationOption = Annotated[
    str | None, typer.Option("--calibration", metavar="ID", help="Default: the model's newest.")
]


def allocate(
    budget: Annotated[
        str, typer.Argument(help='"2.5 bpw", "20 GB", "25%" of the original, bytes, or "uniform:b_q=2,rank=64".')
    ],
    model: ModelOption,
    kind: Annotated[Kind, typer.Option(help="How it is chosen; the exact solver, or something to compare with.")] = (
        Kind.OPTIMAL
    ),
    objective: ObjectiveOption = Objective.KL,
    scope: ScopeOption = Scope.DECODER,
    constraints: ConstraintsOption = None,
    name: Annotated[str, typer.Option(help="What the allocation is called.")] = "allocation",
    calibration: CalibrationOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other parameter of the API; repeatable."),
    ] = None,
    overrides: Annotated[
        Path | None,
        typer.Option("--overrides", metavar="FILE.yaml", help="Write the config of every matrix as YAML."),
    ] = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose a config for every matrix of a measured model under a budget of bytes, and store the choice.

    The model needs a sweep, and for all objectives but `error` a sensitivity job. A budget that is too small is
    answered with the smallest one that would do.

    \b
    Examples:
      bitbudget allocate "3 bpw" --model demo/model
      bitbudget allocate uniform:b_q=3,rank=16 --model demo/model --overrides overrides.yaml
      bitbudget allocate 25% --model demo/model --constraints constraints.yaml --json
      bitbudget allocate "3 bpw" --model demo/model --kind random --set count=20 --set seed=1
    """
    params: dict[str, Any] = {
        "name": name,
        "kind": kind.value,
        "objective": objective.value,
        "scope": scope.value,
        "calibration_id": calibration,
        "budget": budget_fields(budget),
    }
    if constraints is not None:
        params["constraints"] = _read_yaml(constraints)
    for setting in settings or []:
        set_value(params, *parse_assignment(setting))
    with connect(server) as api:
        params["model_id"] = model_id(api, model)
        found = api.post("/allocations", params, headers={"Idempotency-Key": secrets.token_hex(16)})
    if overrides is not None:
        _write(overrides, found["overrides_yaml"])
    if as_json:
        print_json(found)
        return
    console = out()
    console.print(allocation_table(found))
    console.print()
    for sentence in allocation_sentences(found):
        console.print(Text(sentence))
    say(f"stored as {found['id']}")


def frontier(
    model: ModelOption,
    points: Annotated[int, typer.Option(min=2, help="Show at most so many points, spread over the bytes.")] = 20,
    objective: ObjectiveOption = Objective.KL,
    scope: ScopeOption = Scope.DECODER,
    constraints: ConstraintsOption = None,
    calibration: CalibrationOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what every budget would buy: the optimal objective over bytes, with the uniform configs beside it.

    Nothing is stored. "per MB" is what the last megabyte before a point saved.

    \b
    Examples:
      bitbudget frontier --model demo/model
      bitbudget frontier --model demo/model --points 1000 --json > frontier.json
    """
    params: dict[str, Any] = {
        "objective": objective.value,
        "scope": scope.value,
        "calibration_id": calibration,
        "points": points,
    }
    if constraints is not None:
        params["constraints"] = _read_yaml(constraints)
    with connect(server) as api:
        found = api.post("/allocations/frontier", params | {"model_id": model_id(api, model)})
    if as_json:
        print_json(found)
        return
    console = out()
    console.print(frontier_table(found))
    console.print()
    console.print(uniform_table(found))


def budget_fields(text: str) -> dict[str, Any]:
    """A budget as the API takes it.

    Raises:
        CliError: the text is none.
    """
    # numpy and scipy come with it: only who allocates waits for them
    from compress_core.allocate.budget import Budget
    from compress_core.errors import ConfigError

    try:
        budget = Budget.parse(text)
    except ConfigError as error:
        raise CliError(str(error)) from error
    match budget.kind:
        case "bytes":
            return {"bytes": int(budget.value or 0)}
        case "bpw":
            return {"bits_per_weight": float(budget.value or 0)}
        case "fraction":
            return {"fraction": float(budget.value or 0)}
        case _:
            return {"uniform": {name: load_yaml(value) for name, value in budget.config}}


def model_id(api: Api, model: str) -> str:
    """The id of a model that is named by its id or its folder."""
    if model.startswith("model_") and not Path(model).exists():
        return model
    found: str = api.post("/models", {"source": resolve(model, Path.cwd())})["id"]
    return found


def _read_yaml(path: Path) -> Any:
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CliError(f"cannot read {path}: {error}") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror}") from error
