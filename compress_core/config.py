"""CompressionConfig: one way to compress a matrix, and its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Self

from compress_core.errors import ConfigError, RankTooLarge

#: bits of Q that each codebook offers
CODEBOOK_BITS: dict[str, tuple[int, ...]] = {
    "scalar": (2, 3, 4, 5, 6, 7, 8),
    "e8": (2, 3, 4),
    "trellis": (2, 3, 4, 5, 6, 7, 8),
    "rtn": (2, 3, 4, 5, 6, 7, 8),
    "gptq": (2, 3, 4, 5, 6, 7, 8),
    "raw": (16,),
}
#: what the others are compared with: a uniform grid a row in the natural basis, rank 0 only
BASELINE_CODEBOOKS = ("rtn", "gptq")
#: the matrix left as it is, in 16 bits a weight: lossless where it has 16 bits
RAW_CODEBOOK = "raw"
#: those that work in the natural basis and take rank 0 only
UNROTATED_CODEBOOKS = (*BASELINE_CODEBOOKS, RAW_CODEBOOK)
FACTOR_BITS = (4, 8, 16)
#: fewest and most states of the trellis codebook
STATES = (2**8, 2**16)


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """How one matrix is compressed as W ≈ Q + L·R (CALDERA, arXiv 2405.18886, eq. 1).

    Raises:
        ConfigError: a field is out of range; the message names the field and the allowed values.
    """

    #: bits a weight of Q, 2 to 8 (codebook "e8": 2, 3 or 4; "raw": 16)
    b_q: int
    #: rank r of L (out, r) and R (r, in); 0 = no low-rank part
    rank: int = 0
    #: bits of the factors, 4, 8 or 16; a pair means (bits of L, bits of R)
    factor_bits: int | tuple[int, int] = 4
    #: "scalar", "e8" or "trellis": incoherence processing and LDLQ; "rtn" (plain round-to-nearest a row) and
    #: "gptq" (the same grid with GPTQ's feedback): the baselines; "raw": the matrix as it is
    codebook: str = "trellis"
    #: seed of the random signs of the incoherence transform
    seed: int = 0
    #: outer iterations of the alternation between Q and L·R; without effect at rank 0
    iterations: int = 2
    #: states of the trellis, a power of two from 256 to 65536; without effect for the other codebooks
    states: int = 1024

    def __post_init__(self) -> None:
        for name in ("b_q", "rank", "seed", "iterations", "states"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name} must be an integer, not {value!r}")
        if not isinstance(self.codebook, str) or self.codebook not in CODEBOOK_BITS:
            raise ConfigError(f"unknown codebook {self.codebook!r}: choose one of {', '.join(CODEBOOK_BITS)}")
        if self.b_q not in CODEBOOK_BITS[self.codebook]:
            allowed = ", ".join(map(str, CODEBOOK_BITS[self.codebook]))
            raise ConfigError(f"codebook {self.codebook!r} has no b_q = {self.b_q}: choose one of {allowed}")
        if self.rank < 0:
            raise ConfigError(f"rank must be 0 or more, not {self.rank}")
        if self.codebook in UNROTATED_CODEBOOKS and self.rank:
            why = "leaves the matrix as it is" if self.codebook == RAW_CODEBOOK else "is a baseline"
            raise ConfigError(f"codebook {self.codebook!r} {why}: it takes rank 0 only")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed must lie in 0 … 2^31 − 1, not {self.seed}")
        if not 1 <= self.iterations <= 100:
            raise ConfigError(f"iterations must lie in 1 … 100, not {self.iterations}")
        if not STATES[0] <= self.states <= STATES[1] or self.states & (self.states - 1):
            raise ConfigError(f"states must be a power of two in {STATES[0]} … {STATES[1]}, not {self.states}")
        bits = self.factor_bits
        pair = tuple(bits) if isinstance(bits, tuple | list) else (bits, bits)
        # 8.0 == 8, but it would get a hash of its own
        if len(pair) != 2 or any(type(b) is not int or b not in FACTOR_BITS for b in pair):
            raise ConfigError(f"factor_bits must be 4, 8 or 16, or a pair of these, not {bits!r}")
        object.__setattr__(self, "factor_bits", pair[0] if pair[0] == pair[1] else pair)

    @property
    def factor_bits_l(self) -> int:
        return self.factor_bits if isinstance(self.factor_bits, int) else self.factor_bits[0]

    @property
    def factor_bits_r(self) -> int:
        return self.factor_bits if isinstance(self.factor_bits, int) else self.factor_bits[1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields; ``from_dict`` inverts it."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        if isinstance(self.factor_bits, tuple):
            out["factor_bits"] = list(self.factor_bits)
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping (JSON, YAML).

        Raises:
            ConfigError: an unknown or missing field, or a value out of range.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown config field {unknown[0]!r}: the fields are {', '.join(sorted(known))}")
        if "b_q" not in values:
            raise ConfigError("a config needs b_q, the bits a weight of Q")
        args = dict(values)
        if isinstance(args.get("factor_bits"), list):
            args["factor_bits"] = tuple(args["factor_bits"])
        return cls(**args)

    @property
    def config_hash(self) -> str:
        """16 hex digits that identify the config; fields without effect (those of L·R at rank 0) do not count."""
        return _hash_of(self)

    def check_shape(self, out_features: int, in_features: int) -> None:
        """Refuse a rank that the matrix cannot have.

        Raises:
            RankTooLarge: rank > min(out_features, in_features).
        """
        limit = min(out_features, in_features)
        if self.rank > limit:
            raise RankTooLarge(
                f"rank {self.rank} exceeds min(out, in) = {limit} of a {out_features} × {in_features} matrix: "
                f"choose a rank of at most {limit}"
            )

    def clamped(self, out_features: int, in_features: int) -> Self:
        """This config with its rank cut to min(out_features, in_features): what *uniform* means for small matrices."""
        limit = min(out_features, in_features)
        return self if self.rank <= limit else replace(self, rank=limit)

    def __str__(self) -> str:
        factors = f" r{self.rank} f{self.factor_bits}" if self.rank else " r0"
        return f"{self.codebook} {self.b_q}b{factors}"


@lru_cache(maxsize=4096)
def _hash_of(config: CompressionConfig) -> str:
    # a table of matrices × configs asks for the same few hashes thousands of times
    effective = config.to_dict()
    if config.rank == 0:
        effective.pop("factor_bits")
        effective.pop("iterations")
    if config.codebook != "trellis":
        effective.pop("states")
    if config.codebook in UNROTATED_CODEBOOKS:
        effective.pop("seed")
    text = json.dumps(effective, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
