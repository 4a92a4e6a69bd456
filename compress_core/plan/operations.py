"""What the steps of compressing a matrix grow with, and the least number of operations that each takes.

What small matrices take tells what large ones do only where the way it grows is known. ``FEATURES`` are the ways,
``FLOORS`` what products and factorisations must take, at the rate of a large product: a fit never goes below.

Shapes: m = out_features, n = in_features, k = rank and the directions beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

#: input: rotate and factorise H, once for all matrices that read it. feedback: H factorised for a codebook's blocks.
#: matrix: rotate W. start: Q of rank 0, with its row scales. rank: what a rank takes beyond. rtn, gptq: a baseline.
#: measure: dequantise and tell the errors
Kind = Literal["input", "feedback", "matrix", "start", "rank", "rtn", "gptq", "measure"]

#: up to this width factorisations are in float64, and kept for the next config (compress_core.rooted_hessian)
EXACT_WIDTH = 4096
#: columns beside the rank in a subspace iteration
_OVERSAMPLE = 8


@dataclass(frozen=True, slots=True)
class Size:
    """A matrix, and the rank of its factors."""

    out_features: int
    in_features: int
    rank: int = 0

    @property
    def k(self) -> int:
        return self.rank + _OVERSAMPLE if self.rank else 0


#: feature → its value at a size
FEATURES: Mapping[str, Callable[[Size], float]] = {
    "fixed": lambda s: 1.0,
    "columns": lambda s: float(s.in_features),
    "weights": lambda s: float(s.out_features) * s.in_features,
    "squares": lambda s: float(s.in_features) ** 2,
    "products": lambda s: float(s.out_features) * s.in_features**2,
    # float32 takes half of what float64 does
    "cubes": lambda s: float(s.in_features) ** 3 * (1.0 if s.in_features <= EXACT_WIDTH else 0.5),
    "rank_weights": lambda s: float(s.k) * s.out_features * s.in_features,
    "rank_squares": lambda s: float(s.k) * s.in_features**2,
}

#: kind → its features
FEATURES_OF: Mapping[Kind, tuple[str, ...]] = {
    "input": ("fixed", "squares", "cubes"),
    "feedback": ("fixed", "columns", "cubes"),
    "matrix": ("fixed", "weights"),
    "start": ("fixed", "columns", "weights", "products"),
    "rank": ("fixed", "columns", "weights", "products", "cubes", "rank_weights", "rank_squares"),
    "rtn": ("fixed", "weights"),
    "gptq": ("fixed", "columns", "weights", "products", "cubes"),
    "measure": ("fixed", "weights", "products"),
}

#: kind → feature → operations that it takes at least, counted from the method: half a product with a triangle is n² m
FLOORS: Mapping[Kind, Mapping[str, float]] = {
    "input": {"cubes": 1 / 3},
    "feedback": {"cubes": 1 / 3},
    "matrix": {},
    "start": {"products": 50.0},
    "rank": {"products": 4.0, "cubes": 1 / 3, "rank_weights": 20.0, "rank_squares": 10.0},
    "rtn": {},
    "gptq": {"products": 1.0, "cubes": 2 / 3},
    "measure": {"products": 2.0},
}


#: feature → so many times the floor are the most that it may take: panels of a product are slower than a large one, and
#: factorisations of small matrices are in float64. What small matrices take beyond is not what grows
CEILINGS: Mapping[str, float] = {"products": 2.0, "cubes": 6.0, "rank_weights": 6.0, "rank_squares": 6.0}


def features(kind: Kind, size: Size) -> dict[str, float]:
    """Values of the features that a kind has."""
    return {name: FEATURES[name](size) for name in FEATURES_OF[kind]}
