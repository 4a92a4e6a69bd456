"""Constraints: what an allocation must keep to besides its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, Self, TypeVar

from compress_core.allocate.patterns import (
    ConfigPattern,
    MatrixPattern,
    Range,
    checked_projections,
    known_fields,
    ranges_from_json,
)
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError
from compress_core.matrix import MatrixSpec

Agreement = Literal["config", "b_q"]
Experts = Literal["each", "together"]
_Entry = TypeVar("_Entry", "Pin", "Veto", "Limit", "Group")


@lru_cache(maxsize=4096)
def hash_of(config: CompressionConfig) -> str:
    """``config.config_hash``, remembered."""
    # a table asks for the same few hashes tens of thousands of times
    return config.config_hash


@dataclass(frozen=True, slots=True)
class Pin:
    """These matrices take this config, its rank clamped to the matrix."""

    matrices: MatrixPattern
    config: CompressionConfig

    def __str__(self) -> str:
        return f"pin {self.matrices} = {self.config}"

    def allows(self, spec: MatrixSpec, config: CompressionConfig, nbytes: int) -> bool:
        """Whether a matrix that the pattern matches may take a config (as clamped to it) of so many bytes."""
        return hash_of(config) == hash_of(self.config.clamped(spec.out_features, spec.in_features))

    def to_dict(self) -> dict[str, Any]:
        return {"matrices": self.matrices.to_dict(), "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        fields = known_fields(values, ("matrices", "config"), "pin")
        if not isinstance(fields.get("config"), dict):
            raise ConfigError(f"a pin needs the fields of a config, not {fields.get('config')!r}")
        return cls(MatrixPattern.from_dict(fields.get("matrices", {})), CompressionConfig.from_dict(fields["config"]))


@dataclass(frozen=True, slots=True)
class Veto:
    """These matrices take none of these configs."""

    matrices: MatrixPattern
    configs: ConfigPattern

    def __str__(self) -> str:
        return f"veto {self.matrices}: {self.configs}"

    def allows(self, spec: MatrixSpec, config: CompressionConfig, nbytes: int) -> bool:
        """As ``Pin.allows``."""
        return not self.configs.matches(config)

    def to_dict(self) -> dict[str, Any]:
        return {"matrices": self.matrices.to_dict(), "configs": self.configs.to_dict()}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        fields = known_fields(values, ("matrices", "configs"), "veto")
        return cls(
            MatrixPattern.from_dict(fields.get("matrices", {})), ConfigPattern.from_dict(fields.get("configs", {}))
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """Bounds for these matrices, both ends included; None leaves an end open.

    A least rank above what a matrix can have asks for the most that it can have: as for ``clamped``.

    Raises:
        ConfigError: no bound is given, one is negative, or a least exceeds its most.
    """

    matrices: MatrixPattern
    min_b_q: int | None = None
    max_b_q: int | None = None
    min_rank: int | None = None
    max_rank: int | None = None
    #: 8·bytes / weights of the matrix
    min_bits_per_weight: float | None = None
    max_bits_per_weight: float | None = None

    def __post_init__(self) -> None:
        stated = self._stated()
        if not stated:
            raise ConfigError(f"a limit needs at least one of {', '.join(_BOUNDS)}")
        for name, value in stated.items():
            whole = not name.endswith("weight")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ConfigError(f"{name} must be a {'whole ' if whole else ''}number, not {value!r}")
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} must be 0 or more and finite, not {value}")
        for what in ("b_q", "rank", "bits_per_weight"):
            least, most = stated.get(f"min_{what}"), stated.get(f"max_{what}")
            if least is not None and most is not None and least > most:
                raise ConfigError(f"min_{what} {least} exceeds max_{what} {most}")

    def _stated(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _BOUNDS if getattr(self, name) is not None}

    def __str__(self) -> str:
        return f"limit {self.matrices}: " + " ".join(f"{name}={value}" for name, value in self._stated().items())

    def allows(self, spec: MatrixSpec, config: CompressionConfig, nbytes: int) -> bool:
        """As ``Pin.allows``."""
        rank_limit = min(spec.out_features, spec.in_features)
        bits = Fraction(8 * nbytes, spec.n_weights)
        return (
            (self.min_b_q is None or config.b_q >= self.min_b_q)
            and (self.max_b_q is None or config.b_q <= self.max_b_q)
            and (self.min_rank is None or config.rank >= min(self.min_rank, rank_limit))
            and (self.max_rank is None or config.rank <= self.max_rank)
            # 2.1 means 21/10, not the float next to it: bytes that meet a bound exactly are within it
            and (self.min_bits_per_weight is None or bits >= Fraction(str(self.min_bits_per_weight)))
            and (self.max_bits_per_weight is None or bits <= Fraction(str(self.max_bits_per_weight)))
        )

    def to_dict(self) -> dict[str, Any]:
        return {"matrices": self.matrices.to_dict(), **self._stated()}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        fields = known_fields(values, ("matrices", *_BOUNDS), "limit")
        return cls(
            MatrixPattern.from_dict(fields.get("matrices", {})),
            **{name: fields[name] for name in _BOUNDS if fields.get(name) is not None},
        )


_BOUNDS = ("min_b_q", "max_b_q", "min_rank", "max_rank", "min_bits_per_weight", "max_bits_per_weight")


@dataclass(frozen=True, slots=True)
class Group:
    """Projections of one layer that must agree: q, k and v run as one kernel, say.

    ``agree`` "config": one config of the menu for all of them, each with its rank clamped; "b_q": the same bits of Q,
    ranks and factors as each likes. ``experts`` "each": every expert of a layer is a group of its own; "together": all
    experts of a layer are one group.

    Raises:
        ConfigError: a projection or a range is wrong, or there is nothing that could disagree.
    """

    projections: tuple[str, ...]
    agree: Agreement = "config"
    layers: tuple[Range, ...] | None = None
    experts: Experts = "each"

    def __post_init__(self) -> None:
        object.__setattr__(self, "projections", checked_projections(self.projections))
        MatrixPattern(layers=self.layers)  # checks the ranges
        if self.agree not in ("config", "b_q"):
            raise ConfigError(f"a group agrees on config or b_q, not {self.agree!r}")
        if self.experts not in ("each", "together"):
            raise ConfigError(f"experts of a group are each or together, not {self.experts!r}")
        if len(self.projections) == 1 and self.experts == "each":
            raise ConfigError(f"a group of {self.projections[0]} alone has nothing to agree with")

    @property
    def matrices(self) -> MatrixPattern:
        return MatrixPattern(self.layers, self.projections)

    def __str__(self) -> str:
        together = ", experts together" if self.experts == "together" else ""
        return f"group {self.matrices} agrees on {self.agree}{together}"

    def to_dict(self) -> dict[str, Any]:
        layers = self.matrices.to_dict().get("layers")
        return {"projections": list(self.projections), "agree": self.agree, "layers": layers, "experts": self.experts}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        fields = known_fields(values, ("projections", "agree", "layers", "experts"), "group")
        if not isinstance(fields.get("projections"), list | tuple):
            raise ConfigError("a group needs a list of projections")
        return cls(
            tuple(fields["projections"]),
            agree=fields.get("agree", "config"),
            layers=ranges_from_json("layers", fields.get("layers")),
            experts=fields.get("experts", "each"),
        )


@dataclass(frozen=True, slots=True)
class Constraints:
    """Everything that an allocation must keep to; all of it holds at once. ``Constraints()`` asks for nothing.

    JSON (``from_dict``)::

        {"pins":   [{"matrices": {"layers": [0], "projections": ["q", "k"]}, "config": {"b_q": 4, "rank": 64}}],
         "vetoes": [{"matrices": {"projections": ["down"]}, "configs": {"b_q": [2]}}],
         "limits": [{"matrices": {"layers": ["0-3"]}, "min_b_q": 3, "max_bits_per_weight": 5.5}],
         "groups": [{"projections": ["q", "k", "v"], "agree": "config"}],
         "max_configs": 3}

    Raises:
        ConfigError: ``max_configs`` is no whole number from 1 up.
    """

    pins: tuple[Pin, ...] = ()
    vetoes: tuple[Veto, ...] = ()
    limits: tuple[Limit, ...] = ()
    groups: tuple[Group, ...] = ()
    #: at most so many distinct configs of the menu in the whole model
    max_configs: int | None = None

    def __post_init__(self) -> None:
        m = self.max_configs
        if m is not None and (isinstance(m, bool) or not isinstance(m, int) or m < 1):
            raise ConfigError(f"max_configs must be a whole number from 1 up, not {m!r}")

    def __bool__(self) -> bool:
        return bool(self.masks or self.groups or self.max_configs is not None)

    @property
    def masks(self) -> tuple[Pin | Veto | Limit, ...]:
        """Those that forbid single cells, in the order in which errors name them."""
        return (*self.pins, *self.vetoes, *self.limits)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; ``from_dict`` inverts it."""
        return {
            "pins": [c.to_dict() for c in self.pins],
            "vetoes": [c.to_dict() for c in self.vetoes],
            "limits": [c.to_dict() for c in self.limits],
            "groups": [c.to_dict() for c in self.groups],
            "max_configs": self.max_configs,
        }

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Build from JSON or YAML; every key may be left out.

        Raises:
            ConfigError: the message names the entry (``vetoes.0: …``).
        """
        fields = known_fields(values, ("pins", "vetoes", "limits", "groups", "max_configs"), "constraints")
        return cls(
            pins=_entries(Pin, fields, "pins"),
            vetoes=_entries(Veto, fields, "vetoes"),
            limits=_entries(Limit, fields, "limits"),
            groups=_entries(Group, fields, "groups"),
            max_configs=fields.get("max_configs"),
        )


def _entries(kind: type[_Entry], fields: Any, name: str) -> tuple[_Entry, ...]:
    values: Sequence[Any] = fields.get(name) or ()
    if not isinstance(values, list | tuple):
        raise ConfigError(f"{name} must be a list, not {values!r}")
    found = []
    for index, entry in enumerate(values):
        try:
            found.append(kind.from_dict(entry))
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{name}.{index}: {error}") from error
    return tuple(found)
