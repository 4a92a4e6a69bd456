"""Budget: how many bytes, said in the ways people say it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Self, get_args

from compress_core.allocate.problem import AllocationProblem
from compress_core.allocate.uniform import uniform_candidates
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError

Scope = Literal["model", "decoder"]

#: GB is 10⁹ bytes; the binary units carry their i
_UNITS = {
    "": 1, "b": 1, "byte": 1, "bytes": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_NUMBER = re.compile(r"([0-9][0-9_,]*(?:\.[0-9]+)?|\.[0-9]+)\s*([a-z%]*)", re.ASCII)
_HELP = 'write bytes ("123456"), "20 GB" (10⁹ bytes), "2.5 bpw", "25%" of the original, or "uniform:b_q=2,rank=64"'


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that an allocation may take.

    ``scope`` says what is counted: ``decoder`` the compressed matrices alone, ``model`` every stored byte, from which
    the bytes outside the matrices are then subtracted. Bits per weight always count the weights of the compressed
    matrices, and ``uniform:…`` always the bytes of that uniform allocation, so there the scope changes nothing.
    """

    kind: Literal["bytes", "bpw", "fraction", "uniform"]
    #: bytes, bits a weight, or a fraction of the original bytes; None for "uniform"
    value: Decimal | None
    #: the config's fields for "uniform"
    config: tuple[tuple[str, str], ...] = ()
    scope: Scope = "decoder"

    def __str__(self) -> str:
        match self.kind:
            case "bytes":
                return f"{int(self.value or 0):,} bytes"
            case "bpw":
                return f"{self.value} bpw"
            case "fraction":
                return f"{(self.value or Decimal(0)) * 100:f}%"
            case _:
                return "uniform:" + ",".join(f"{k}={v}" for k, v in self.config)

    @classmethod
    def parse(cls, text: str | int, *, scope: str = "decoder") -> Self:
        """Read a budget: ``123456``, ``"20 GB"``, ``"2.5 bpw"``, ``"25%"``, ``"uniform:b_q=2,rank=64"``.

        Raises:
            ConfigError: the text is none of these, or the scope unknown.
        """
        if scope not in get_args(Scope):
            raise ConfigError(f"unknown budget scope {scope!r}: choose model (every stored byte) or decoder")
        known: Scope = "model" if scope == "model" else "decoder"
        if isinstance(text, bool) or not isinstance(text, str | int):
            raise ConfigError(f"no budget: {text!r}; {_HELP}")
        words = str(text).strip().lower()
        if words.startswith("uniform:"):
            return cls("uniform", None, _config_fields(words.removeprefix("uniform:")), known)
        match = _NUMBER.fullmatch(words)
        if not match:
            raise ConfigError(f"no budget: {text!r}; {_HELP}")
        number = Decimal(re.sub("[_,]", "", match[1]))
        unit = match[2]
        if number == 0:
            raise ConfigError(f"a budget must be more than nothing, not {text!r}")
        if unit == "bpw":
            return cls("bpw", number, (), known)
        if unit == "%":
            return cls("fraction", number / 100, (), known)
        if unit not in _UNITS:
            raise ConfigError(f"unknown unit {unit!r} in budget {text!r}; {_HELP}")
        size = number * _UNITS[unit]
        if size != int(size):
            raise ConfigError(f"budget {text!r} is no whole number of bytes")
        return cls("bytes", size, (), known)

    def matrix_bytes(self, problem: AllocationProblem) -> int:
        """Bytes that are left for the problem's matrices; may be negative where a small budget covers the whole model.

        Raises:
            ConfigError: "uniform:…" names no config, or more than one, of the problem's menu.
        """
        outside = problem.fixed_bytes if self.scope == "model" else 0
        match self.kind:
            case "bytes":
                return int(self.value or 0) - outside
            case "bpw":
                return math.floor((self.value or Decimal(0)) * problem.n_weights / 8)
            case "fraction":
                return math.floor((self.value or Decimal(0)) * (problem.original_bytes + outside)) - outside
            case _:
                return self._uniform_bytes(problem)

    def _uniform_bytes(self, problem: AllocationProblem) -> int:
        candidates = uniform_candidates(problem)
        found = [c for c in candidates if _matches(c.config, self.config)]
        if len(found) != 1:
            names = ", ".join(str(c.config) for c in (found or candidates)) or "nothing"
            how = "matches several configs: name more fields" if found else "matches no config of the menu"
            raise ConfigError(f"budget {self} {how} ({names})")
        return found[0].total_bytes


def _config_fields(text: str) -> tuple[tuple[str, str], ...]:
    fields: list[tuple[str, str]] = []
    if re.fullmatch("[0-9a-f]{16}", text.strip()):
        return (("config_hash", text.strip()),)
    for part in text.split(","):
        name, equals, value = (s.strip() for s in part.partition("="))
        if not equals or name not in CompressionConfig.__dataclass_fields__:
            known = ", ".join(CompressionConfig.__dataclass_fields__)
            raise ConfigError(f"budget uniform:{text}: {part.strip()!r} is not FIELD=VALUE with a field out of {known}")
        fields.append((name, value))
    return tuple(fields)


def _matches(config: CompressionConfig, wanted: tuple[tuple[str, str], ...]) -> bool:
    return all(str(getattr(config, name)).lower() == value for name, value in wanted)
