"""Budget: how many bytes, said in the ways people say it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
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
#: commas stand between groups of three digits only: "2,5 bpw" is a mistake, and no 25
_NUMBER = re.compile(
    r"([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*([a-z%]*)", re.ASCII
)
_HELP = 'write bytes ("123456"), "20 GB" (10⁹ bytes), "2.5 bpw", "25%" of the original, or "uniform:b_q=2,rank=64"'


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that an allocation may take.

    ``scope`` says what is counted: ``decoder`` the compressed matrices alone, ``model`` every stored byte, from which
    the bytes outside the matrices are then subtracted. Bits per weight always count the weights of the compressed
    matrices, and ``uniform:…`` always the bytes of that uniform allocation, so there the scope changes nothing. A
    fraction is one of all original bytes in the scope. What is no whole number of bytes is rounded down: a budget is a
    most.

    Raises:
        ConfigError: a value that is missing, not finite, 0 or less, or a fraction above 1.
    """

    kind: Literal["bytes", "bpw", "fraction", "uniform"]
    #: bytes, bits a weight, or a fraction of the original bytes; None for "uniform"
    value: Decimal | None
    #: the config's fields for "uniform"
    config: tuple[tuple[str, str], ...] = ()
    scope: Scope = "decoder"

    def __post_init__(self) -> None:
        if self.kind == "uniform":
            return
        if self.value is None or not self.value.is_finite() or self.value <= 0:
            raise ConfigError(f"a budget must be more than nothing and finite, not {self.value} ({self.kind})")
        if self.kind == "fraction" and self.value > 1:
            raise ConfigError(f"a budget of {_percent(self.value)} of the original bytes is more than all of them")

    @classmethod
    def of_fraction(cls, fraction: float | Decimal | str, *, scope: str = "decoder") -> Self:
        """A fraction of the original bytes, 0 < fraction ≤ 1. A float means its shortest decimal: 0.1 is 1/10.

        Raises:
            ConfigError: no number, out of range, or the scope unknown.
        """
        if isinstance(fraction, bool):
            raise ConfigError(f"a budget's fraction must be a number, not {fraction!r}")
        try:
            value = Decimal(str(fraction))
        except InvalidOperation as error:
            raise ConfigError(f"a budget's fraction must be a number, not {fraction!r}") from error
        return cls("fraction", value, (), _known(scope))

    def __str__(self) -> str:
        match self.kind:
            case "bytes":
                return f"{int(self.value or 0):,} bytes"
            case "bpw":
                return f"{self.value} bpw"
            case "fraction":
                return _percent(self.value or Decimal(0))
            case _:
                return "uniform:" + ",".join(f"{k}={v}" for k, v in self.config)

    @classmethod
    def parse(cls, text: str | int, *, scope: str = "decoder") -> Self:
        """Read a budget: ``123456``, ``"20 GB"``, ``"2.5 bpw"``, ``"25%"``, ``"uniform:b_q=2,rank=64"``.

        Raises:
            ConfigError: the text is none of these, or the scope unknown.
        """
        known = _known(scope)
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


def _percent(fraction: Decimal) -> str:
    return f"{(fraction * 100).normalize():f}%"


def _known(scope: str) -> Scope:
    if scope not in get_args(Scope):
        raise ConfigError(f"unknown budget scope {scope!r}: choose model (every stored byte) or decoder")
    return "model" if scope == "model" else "decoder"


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
