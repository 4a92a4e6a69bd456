"""MatrixPattern and ConfigPattern: which matrices and which configs a constraint speaks of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from compress_core.config import CODEBOOK_BITS, FACTOR_BITS, CompressionConfig
from compress_core.errors import ConfigError
from compress_core.matrix import PROJECTIONS, MatrixKey

#: first and last, both included
Range = tuple[int, int]
_RANGE = re.compile(r"([0-9]+)-([0-9]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class MatrixPattern:
    """Matrices by layer, projection and expert; what is None matches everything: ``MatrixPattern()`` is every matrix.

    Raises:
        ConfigError: an empty list, a range that ends before it begins, an unknown projection.
    """

    #: ranges of layer_idx
    layers: tuple[Range, ...] | None = None
    projections: tuple[str, ...] | None = None
    #: ranges of expert_idx; -1 is the matrix of a layer without experts
    experts: tuple[Range, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in (("layers", 0), ("experts", -1)):
            ranges = getattr(self, name)
            if ranges is None:
                continue
            if not ranges:
                raise ConfigError(f"{name} must name at least one; leave it out to match all")
            for first, last in ranges:
                if first < least or last < first:
                    raise ConfigError(f"{name}: {first}-{last} is no range from {least} up")
        object.__setattr__(self, "projections", checked_projections(self.projections))

    def __str__(self) -> str:
        projections = "*" if self.projections is None else "+".join(self.projections)
        text = f"{_text(self.layers)}.{projections}"
        return text if self.experts is None else f"{text}.{_text(self.experts)}"

    def matches(self, key: MatrixKey) -> bool:
        return (
            _within(key.layer_idx, self.layers)
            and (self.projections is None or key.projection in self.projections)
            and _within(key.expert_idx, self.experts)
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; ``from_dict`` inverts it. Ranges of more than one are text: ``"4-7"``."""
        out: dict[str, Any] = {}
        if self.layers is not None:
            out["layers"] = _ranges_to_json(self.layers)
        if self.projections is not None:
            out["projections"] = list(self.projections)
        if self.experts is not None:
            out["experts"] = _ranges_to_json(self.experts)
        return out

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Build from ``{"layers": [0, "4-7"], "projections": ["q"], "experts": [0]}``; each key may be left out.

        Raises:
            ConfigError: an unknown key or a value that makes no pattern.
        """
        fields = known_fields(values, ("layers", "projections", "experts"), "matrices")
        return cls(
            layers=ranges_from_json("layers", fields.get("layers")),
            projections=None if fields.get("projections") is None else _list("projections", fields["projections"]),
            experts=ranges_from_json("experts", fields.get("experts")),
        )


@dataclass(frozen=True, slots=True)
class ConfigPattern:
    """Configs by their fields as the matrix takes them (its rank clamped); what is None matches everything.

    Raises:
        ConfigError: nothing is stated, or a value that no config has.
    """

    codebook: tuple[str, ...] | None = None
    b_q: tuple[int, ...] | None = None
    rank: tuple[int, ...] | None = None
    #: matches where L or R has these bits
    factor_bits: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        stated = {name: getattr(self, name) for name in self.__slots__ if getattr(self, name) is not None}
        if not stated:
            raise ConfigError("a veto must name at least one of codebook, b_q, rank, factor_bits")
        for name, values in stated.items():
            if not values:
                raise ConfigError(f"{name} must name at least one value")
            for value in values:
                _check_value(name, value)

    def __str__(self) -> str:
        stated = ((name, getattr(self, name)) for name in self.__slots__)
        return " ".join(f"{name}={'|'.join(map(str, values))}" for name, values in stated if values is not None)

    def matches(self, config: CompressionConfig) -> bool:
        return (
            (self.codebook is None or config.codebook in self.codebook)
            and (self.b_q is None or config.b_q in self.b_q)
            and (self.rank is None or config.rank in self.rank)
            and (
                self.factor_bits is None
                or (config.rank > 0 and bool({config.factor_bits_l, config.factor_bits_r} & set(self.factor_bits)))
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; ``from_dict`` inverts it."""
        return {name: list(getattr(self, name)) for name in self.__slots__ if getattr(self, name) is not None}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Build from ``{"b_q": [2], "rank": [0]}``; a single value may stand without brackets.

        Raises:
            ConfigError: an unknown key or value.
        """
        fields = known_fields(values, ("codebook", "b_q", "rank", "factor_bits"), "configs")
        return cls(**{name: _list(name, value) for name, value in fields.items() if value is not None})


def known_fields(values: Any, known: Sequence[str], where: str) -> Mapping[str, Any]:
    """``values`` as a mapping of known keys.

    Raises:
        ConfigError: no mapping, or a key that is not known.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping of {', '.join(known)}, not {values!r}")
    if unknown := sorted(str(name) for name in values if name not in known):
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(known)}")
    return values


def checked_projections(projections: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Projections in the order of a layer, each once.

    Raises:
        ConfigError: none, or an unknown one.
    """
    if projections is None:
        return None
    if not projections:
        raise ConfigError("projections must name at least one; leave it out to match all")
    for name in projections:
        if name not in PROJECTIONS:
            raise ConfigError(f"unknown projection {name!r}: choose out of {', '.join(PROJECTIONS)}")
    return tuple(name for name in PROJECTIONS if name in projections)


def ranges_from_json(name: str, values: Any) -> tuple[Range, ...] | None:
    """``[0, "4-7"]`` as ranges; None stays None.

    Raises:
        ConfigError: an entry that is neither a number nor FIRST-LAST.
    """
    if values is None:
        return None
    ranges = []
    for value in _list(name, values):
        if isinstance(value, int) and not isinstance(value, bool):
            ranges.append((value, value))
        elif isinstance(value, str) and (match := _RANGE.fullmatch(value)):
            ranges.append((int(match[1]), int(match[2])))
        else:
            raise ConfigError(f'{name}: {value!r} is neither a number nor a range such as "4-7"')
    return tuple(ranges)


def _list(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(value, str | int):
        return (value,)
    raise ConfigError(f"{name} must be a list, not {value!r}")


def _ranges_to_json(ranges: tuple[Range, ...]) -> list[int | str]:
    return [first if first == last else f"{first}-{last}" for first, last in ranges]


def _text(ranges: tuple[Range, ...] | None) -> str:
    return "*" if ranges is None else ",".join(str(r) for r in _ranges_to_json(ranges))


def _within(value: int, ranges: tuple[Range, ...] | None) -> bool:
    return ranges is None or any(first <= value <= last for first, last in ranges)


def _check_value(name: str, value: Any) -> None:
    if name == "codebook":
        if value not in CODEBOOK_BITS:
            raise ConfigError(f"unknown codebook {value!r}: choose one of {', '.join(CODEBOOK_BITS)}")
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be whole numbers, not {value!r}")
    if name == "factor_bits" and value not in FACTOR_BITS:
        raise ConfigError(f"factor_bits must be 4, 8 or 16, not {value}")
    if value < 0:
        raise ConfigError(f"{name} must be 0 or more, not {value}")
