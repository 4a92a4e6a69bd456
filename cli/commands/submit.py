"""`bitbudget submit`: a study from a file, or one job."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.api import Api
from cli.commands.wait import TimeoutOption, watch
from cli.errors import CliError
from cli.options import JsonOption, ServerOption, connect
from cli.output import print_json, say
from cli.study_file import load_study, parse_assignment, resolve, set_value

#: job kind -> where it is posted
ENDPOINTS = {
    "model": "/models",
    "calibrate": "/calibrations",
    "sensitivity": "/sensitivities",
    "sweep": "/sweeps",
    "fit": "/fits",
    "allocate": "/allocations",
    "compress": "/compressions",
    "evaluate": "/evaluations",
    "validate": "/validations",
}


def submit(
    what: Annotated[str, typer.Argument(metavar="FILE.yaml|KIND", help="A study, or the kind of one job.")],
    values: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Parameters of the job; values are YAML.")
    ] = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the study; repeatable.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end, with live progress.")] = False,
    timeout: TimeoutOption = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Jobs of higher priority go first.")] = 0,
) -> None:
    """Submit a study from a YAML file, or one job.

    Kinds of jobs: model, calibrate, sensitivity, sweep, fit, allocate, compress, evaluate, validate. Their parameters
    are those of the API (/docs); nested ones are written with dots, and `model=PATH` stands for the model_id of the
    model at PATH. Relative paths are looked for from here and from the file's folder. A model of the hub needs its
    commit: --set model.revision=….

    \b
    Examples:
      bitbudget submit configs/demo.yaml --wait
      bitbudget submit configs/qwen2_1.5b_caldera_uniform.yaml --set model.revision=COMMIT
      bitbudget submit sweep model=demo/model configs='[{b_q: 2, rank: 8}, {b_q: 3, rank: 0}]' --wait
      bitbudget submit evaluate model=demo/model windows.count=32
    """
    assignments = [*(values or []), *(overrides or [])]
    with connect(server) as api:
        if what in ENDPOINTS:
            answer = _submit_job(api, what, assignments, priority)
        else:
            answer = submit_study(api, _study_path(what), assignments, priority)
        waitable = answer["id"].startswith("job_") or what not in ENDPOINTS
        if wait and waitable:
            if not as_json:
                say(f"submitted {answer['id']}")
            raise typer.Exit(watch(api, answer["id"], as_json=as_json, timeout=timeout).exit_code)
    if as_json:
        print_json(answer)
    elif waitable:
        say(f"submitted {answer['id']}; follow it with: bitbudget wait {answer['id']}")
    else:
        print_json(answer)


def submit_study(api: Api, path: Path, overrides: list[str], priority: int = 0) -> dict[str, Any]:
    """Post the study; sent twice by a network that lost the answer, it is still one study."""
    config = load_study(path, overrides)
    study: dict[str, Any] = api.post(_urgent("/studies", priority), {"config": config}, headers=_idempotent())
    return study


def _submit_job(api: Api, kind: str, assignments: list[str], priority: int) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for assignment in assignments:
        set_value(params, *parse_assignment(assignment))
    here = Path.cwd()
    if kind == "model" and isinstance(params.get("source"), str):
        params["source"] = resolve(params["source"], here)
    if "model" in params:
        source = params.pop("model")
        params["model_id"] = api.post("/models", {"source": resolve(str(source), here)})["id"]
    if kind == "compress" and isinstance(params.get("overrides"), str):
        params["overrides_yaml"] = _read(Path(params.pop("overrides")))
    text = params.get("text")
    if isinstance(text, dict) and isinstance(text.get("path"), str):
        text["path"] = resolve(text["path"], here)
    answer: dict[str, Any] = api.post(_urgent(ENDPOINTS[kind], priority), params, headers=_idempotent())
    return answer


def _urgent(path: str, priority: int) -> str:
    return f"{path}?priority={priority}" if priority else path


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise CliError(f"{path} cannot be read: {error}") from error


def _study_path(what: str) -> Path:
    path = Path(what)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise CliError(f"there is no file {what}")
    raise CliError(
        f"{what!r} is neither a file nor a kind of job",
        cure=f"kinds of jobs: {', '.join(ENDPOINTS)}; a study: FILE.yaml",
    )


def _idempotent() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(16)}
