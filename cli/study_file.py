"""A study from a YAML file: overrides applied, relative paths made to mean what their writer meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cli.errors import CliError
from cli.stack.plan import ROOT
from compress_core.hub import is_hub_id
from compress_core.strict_yaml import load_yaml


def load_study(path: Path, overrides: Iterable[str] = (), *, pinned: bool = True) -> dict[str, Any]:
    """The study's config as the API takes it.

    A relative path in the file is looked for from the working directory, from the file's own folder, and from the
    checkout. What is found nowhere stays as it is: it may be a hub id, or a path of the server's machine.

    Args:
        pinned: whether a hub id needs its commit. Shapes alone do not change under a name.

    Raises:
        CliError: no such file, not YAML, not a mapping, an override that fits nowhere, a hub id without a revision.
    """
    config = _read(path)
    for override in overrides:
        set_value(config, *parse_assignment(override))
    folder = path.resolve().parent
    model = config.get("model")
    if isinstance(model, dict) and isinstance(model.get("source"), str):
        model["source"] = resolve(model["source"], folder)
        if pinned:
            _check_revision(model, path)
    for text in _texts(config):
        if isinstance(text.get("path"), str):
            text["path"] = resolve(text["path"], folder)
    return config


def resolve(path: str, folder: Path) -> str:
    """``path`` made absolute where it exists on this machine."""
    expanded = Path(path).expanduser()
    for candidate in (expanded, folder / expanded, ROOT / expanded):
        if candidate.exists():
            return str(candidate.resolve())
    return path


def parse_assignment(text: str) -> tuple[str, Any]:
    """``key.of.nested=value``, the value read as YAML.

    Raises:
        CliError: there is no ``=``, no key, or the value is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise CliError(f"{text!r} is no assignment", cure="write key=value, for example windows.count=8")
    try:
        return key, load_yaml(value)
    except Exception as error:  # as above, in _read
        raise CliError(f"{key}: {value!r} is not valid YAML ({error})", cure="quote texts that hold : or [") from error


def set_value(target: dict[str, Any], key: str, value: Any) -> None:
    """Set ``target["a"]["b"]`` for the key ``a.b``; mappings on the way are made.

    Raises:
        CliError: something on the way is no mapping.
    """
    *way, last = key.split(".")
    for name in way:
        inner = target.get(name)
        if inner is None:
            inner = target[name] = {}
        if not isinstance(inner, dict):
            raise CliError(f"cannot set {key}: {name} is {inner!r}, not a mapping")
        target = inner
    target[last] = value


def _read(path: Path) -> dict[str, Any]:
    try:
        config = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # PyYAML's constructors also raise ValueError, KeyError, RecursionError, …
        raise CliError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise CliError(f"{path} holds no study", cure="a study is a mapping; configs/demo.yaml is an example")
    return config


def _check_revision(model: Mapping[str, Any], path: Path) -> None:
    """Weights of a hub id can change under its name: a study says which commit it is about."""
    source = model["source"]
    if Path(source).exists() or not is_hub_id(source) or model.get("revision"):
        return
    raise CliError(
        f"{path}: model.source is {source!r}, no folder of this machine, and as a hub id it needs the commit",
        cure=f"bitbudget submit {path} --set model.revision=<40 hex digits>, from the model's page; "
        "or --set model.source=<local folder>",
    )


def _texts(config: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Every mapping of a study that names a text."""
    evaluation = config.get("evaluation")
    datasets = evaluation.get("datasets") if isinstance(evaluation, dict) else None
    candidates = [config.get("text"), *(datasets if isinstance(datasets, list) else [])]
    return [text for text in candidates if isinstance(text, dict)]
