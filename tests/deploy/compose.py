"""docker-compose.yml and Dockerfile as the engine would read them: variables put in, stages with their instructions."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

REPO = Path(__file__).resolve().parents[2]
COMPOSE = REPO / "docker-compose.yml"
DOCKERFILE = REPO / "Dockerfile"

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<word>[^}]*))?\}")


def resolve(value: Any, variables: Mapping[str, str]) -> Any:
    """``value`` with every ``${NAME}``, ``${NAME:-word}`` and ``${NAME:?word}`` in it replaced.

    Raises:
        KeyError: a variable that must be set is not.
    """
    if isinstance(value, str):

        def word(match: re.Match[str]) -> str:
            given = variables.get(match["name"], "")
            if given or match["kind"] == "-":
                return given or match["word"]
            if match["kind"] == "?":
                raise KeyError(match["word"])
            return ""

        return _VARIABLE.sub(word, value)
    if isinstance(value, dict):
        return {key: resolve(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, variables) for item in value]
    return value


def read_compose(**variables: str) -> dict[str, Any]:
    """The compose file with these variables set and no others."""
    return dict(resolve(yaml.safe_load(COMPOSE.read_text(encoding="utf-8")), variables))


@dataclass(frozen=True)
class Stage:
    """One ``FROM … AS name`` and what follows it."""

    name: str
    base: str
    #: (instruction, its words as written), without comments
    steps: tuple[tuple[str, str], ...]

    def values(self, instruction: str) -> list[str]:
        return [value for name, value in self.steps if name == instruction]


@dataclass(frozen=True)
class Image:
    """What a target's stages, from the first base on, add up to."""

    stages: tuple[Stage, ...]

    @property
    def env(self) -> dict[str, str]:
        words = [word for stage in self.stages for value in stage.values("ENV") for word in shlex.split(value)]
        return dict(word.split("=", 1) for word in words)  # type: ignore[misc]

    @property
    def copied(self) -> list[str]:
        """What it takes from the checkout into its working directory."""
        own = [value for value in self.stages[-1].values("COPY") if not value.startswith("--from=")]
        return [source for value in own for source in value.split()[:-1]]

    def last(self, instruction: str) -> str | None:
        found = [value for stage in self.stages for value in stage.values(instruction)]
        return found[-1] if found else None

    @property
    def command(self) -> list[str]:
        return list(json.loads(self.last("CMD") or "[]"))

    @property
    def probe(self) -> list[str]:
        """The command of its HEALTHCHECK."""
        return list(json.loads((self.last("HEALTHCHECK") or "CMD []").partition("CMD ")[2]))


def read_stages() -> dict[str, Stage]:
    """The Dockerfile's stages by name."""
    stages: list[tuple[str, str, list[tuple[str, str]]]] = []
    for entry in DockerfileParser(path=str(DOCKERFILE)).structure:
        instruction, value = entry["instruction"], entry["value"]
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            stages.append((name, base, []))
        elif instruction != "COMMENT":
            stages[-1][2].append((instruction, value))
    return {name: Stage(name, base, tuple(steps)) for name, base, steps in stages}


def read_image(target: str) -> Image:
    """The image that ``--target`` makes."""
    stages = read_stages()
    chain = [stages[target]]
    while chain[0].base in stages:
        chain.insert(0, stages[chain[0].base])
    return Image(tuple(chain))
