"""What a device does in a second: seconds of a cell from coefficients that a probe measured, or a card's peak gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError
from compress_core.plan.operations import FEATURES_OF, Kind, Size, features

#: coefficients by feature, seconds each
Terms = Mapping[str, float]


@dataclass(frozen=True, order=True, slots=True)
class TermKey:
    """What a set of coefficients is for; what a kind does not depend on is left empty."""

    kind: Kind
    codebook: str = ""
    b_q: int = 0
    states: int = 0

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.kind, self.codebook, self.b_q, self.states))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Inverse of ``str``.

        Raises:
            ConfigError: the text is no key.
        """
        parts = text.split(":")
        if len(parts) != 4 or parts[0] not in FEATURES_OF:
            raise ConfigError(f"{text!r} is no key of a rate")
        return cls(parts[0], parts[1], int(parts[2]), int(parts[3]))  # type: ignore[arg-type]


def key_of(kind: Kind, config: CompressionConfig | None = None) -> TermKey:
    """The key of one kind of work for a config."""
    if config is None or kind in ("input", "matrix", "rtn", "gptq", "measure"):
        return TermKey(kind)
    states = config.states if config.codebook == "trellis" else 0
    if kind == "feedback":
        return TermKey(kind, config.codebook)
    return TermKey(kind, config.codebook, config.b_q, states)


class Unpriced(ConfigError):
    """Nothing is known of a config's codebook on this device: measure it first."""


@dataclass(frozen=True)
class Rates:
    """One device's rates: times of a device that has nothing else to do; ``busy`` tells how far from that it was."""

    device_kind: str
    device_name: str
    #: "measured", "estimated" (from the published peak of a card) or "recorded"
    source: str
    threads: int = 1
    #: float32 operations a second: of a large product, and of a layer's forward pass
    product: float = 1e9
    forward: float = 1e9
    #: logits a second, turned into probabilities and compared
    logits: float = 1e8
    #: bytes a second from and to the disk of the artefacts
    disk_read: float = 1e9
    disk_write: float = 1e9
    terms: Mapping[TermKey, Terms] = field(default_factory=dict)
    #: weights of the largest matrix that was timed; None where none was
    largest: int | None = None
    #: factor by which a time may be off either way
    uncertainty: float = 1.3
    #: share of the processor that the probe had: below 1 the machine did other work too. None = not known
    busy: float | None = None
    #: bytes of memory of the host, and of the card
    memory: int | None = None
    device_memory: int | None = None
    #: what was not measured, for people
    notes: tuple[str, ...] = ()

    def seconds(self, kind: Kind, size: Size, config: CompressionConfig | None = None) -> float:
        """Wall seconds of one piece of work.

        Raises:
            Unpriced: no coefficients for the config's codebook.
        """
        terms = self._terms(key_of(kind, config))
        return sum(terms.get(name, 0.0) * value for name, value in features(kind, size).items())

    def knows(self, config: CompressionConfig) -> bool:
        """Whether the config's codebook, bits and states were measured themselves."""
        kind: Kind = config.codebook if config.codebook in ("rtn", "gptq") else "start"  # type: ignore[assignment]
        return key_of(kind, config) in self.terms

    def _terms(self, key: TermKey) -> Terms:
        if key in self.terms:
            return self.terms[key]
        near = [other for other in self.terms if (other.kind, other.codebook) == (key.kind, key.codebook)]
        if not near:
            raise Unpriced(f"{key.kind} of codebook {key.codebook or 'any'} was not measured on {self.device_name}")
        # the search takes time in proportion to the states; of the bits, the nearest
        best = min(near, key=lambda other: (_octaves(other.states, key.states), abs(other.b_q - key.b_q), other))
        scale = key.states / best.states if best.states and key.states else 1.0
        return {name: value * (scale if name == "weights" else 1.0) for name, value in self.terms[best].items()}

    def merged(self, older: Rates) -> Rates:
        """These rates, and of an older probe of the same device what they lack."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return Rates(**(values | {"terms": {**older.terms, **self.terms}}))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; ``from_dict`` is its inverse."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return values | {
            "terms": {str(key): dict(terms) for key, terms in sorted(self.terms.items())},
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rates as ``to_dict`` wrote them.

        Raises:
            ConfigError: a key of a term is none.
        """
        terms = {TermKey.parse(key): dict(found) for key, found in values.get("terms", {}).items()}
        return cls(**{**values, "terms": terms, "notes": tuple(values.get("notes", ()))})


def _octaves(a: int, b: int) -> float:
    return abs(math.log2(a / b)) if a and b else float(a != b)


@dataclass(frozen=True, slots=True)
class Observation:
    """One piece of work, timed."""

    kind: Kind
    size: Size
    seconds: float
    codebook: str = ""
    b_q: int = 0
    states: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def observed(observations: Iterable[Observation]) -> dict[tuple[Kind, str, int], list[Observation]]:
    """Grouped by what one fit explains: a kind, a codebook and its states."""
    groups: dict[tuple[Kind, str, int], list[Observation]] = {}
    for found in observations:
        groups.setdefault((found.kind, found.codebook, found.states), []).append(found)
    return groups
