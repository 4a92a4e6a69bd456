"""Cards that nobody measured here: rates estimated from what their makers publish.

The estimates assume shares of the peaks, and say by which factor they may be off. A probe on the card replaces them.
"""

from __future__ import annotations

from dataclasses import dataclass

from compress_core.config import CODEBOOK_BITS
from compress_core.errors import ConfigError
from compress_core.plan.operations import FLOORS, Kind
from compress_core.plan.rates import Rates, TermKey

#: times may be so many times shorter or longer
_UNCERTAINTY = 3.0
#: shares of the peak: of a large float32 product, of a layer's forward pass, of products a panel wide
_PRODUCT, _FORWARD, _PANELS = 0.7, 0.5, 0.3
#: share of the published memory rate
_BANDWIDTH = 0.7
#: that a solid-state disk reads and writes
_DISK = 1e9
#: seconds to launch a kernel; kernels for one column of rounding or descent; passes over all columns; bytes that a
#: weight moves in a pass
_LAUNCH_S, _KERNELS, _PASSES, _BYTES = 8e-6, 12, 40, 40
#: kernels of a rank's many small steps; passes over all weights
_RANK_KERNELS, _RANK_PASSES = 3000, 12
#: columns that are rounded at once
_BLOCK = {"e8": 8, "trellis": 16, "scalar": 1}
#: operations for each state, weight and pass of the trellis search
_SEARCH = 4
#: states that the terms are written for; others are in proportion
_STATES = 1024


@dataclass(frozen=True, slots=True)
class Card:
    """A card as its maker describes it (dense, without sparsity)."""

    name: str
    memory: int
    #: operations a second in float32 outside of tensor cores, and in float64
    float32: float
    float64: float
    #: bytes a second
    bandwidth: float


CARDS = (
    Card("RTX 3090", 24 * 2**30, 35.6e12, 0.556e12, 936e9),
    Card("RTX 4090", 24 * 2**30, 82.6e12, 1.29e12, 1008e9),
    Card("A100", 80 * 2**30, 19.5e12, 9.7e12, 2039e9),
    Card("H100", 80 * 2**30, 66.9e12, 33.5e12, 3350e9),
    Card("H200", 141 * 10**9, 66.9e12, 33.5e12, 4800e9),
)


def find_card(name: str) -> Card | None:
    """The card that a name means: ``RTX 3090``, ``3090``, ``NVIDIA H100 80GB HBM3``; None for an unknown one.

    Raises:
        ConfigError: several cards match.
    """
    wanted = _plain(name)
    found = [card for card in CARDS if wanted and (_plain(card.name) in wanted or wanted in _plain(card.name))]
    if len(found) > 1:
        raise ConfigError(f"{name!r} may be any of {', '.join(card.name for card in found)}: give the whole name")
    return found[0] if found else None


def estimated(card: Card) -> Rates:
    """Rates from the card's published peaks."""
    product = _PRODUCT * card.float32
    panels, double = _PANELS * card.float32, _PANELS * card.float64
    move = _BYTES / (_BANDWIDTH * card.bandwidth)
    terms: dict[TermKey, dict[str, float]] = {
        # factorisations are in float64 up to a width of 4096, beyond in float32: the slower one is assumed small
        TermKey("input"): {"fixed": 0.02, "squares": move, "cubes": 1 / panels},
        TermKey("matrix"): {"fixed": 0.005, "weights": move},
        TermKey("rtn"): {"fixed": 0.002, "weights": move},
        TermKey("gptq"): {"fixed": 0.01, "columns": _KERNELS * _LAUNCH_S, "weights": move, "products": 2 / panels,
                          "cubes": 1 / panels},
        TermKey("measure"): {"fixed": 0.005, "weights": 2 * move, "products": FLOORS["measure"]["products"] / double},
    }  # fmt: skip
    for codebook, block in _BLOCK.items():
        terms[TermKey("feedback", codebook)] = {"fixed": 0.01, "columns": 4 * _LAUNCH_S / block, "cubes": 1 / panels}
        states = _STATES if codebook == "trellis" else 0
        search = _SEARCH * states / panels
        for b_q in CODEBOOK_BITS[codebook]:
            terms[TermKey("start", codebook, b_q, states)] = {
                "fixed": 0.02,
                "columns": _PASSES * _KERNELS * _LAUNCH_S / block,
                "weights": _PASSES * (move + search),
                "products": _least("start", "products") / panels,
            }
            terms[TermKey("rank", codebook, b_q, states)] = {
                "fixed": _RANK_KERNELS * _LAUNCH_S,
                "columns": 3 * _KERNELS * _LAUNCH_S / block,
                "weights": _RANK_PASSES * move + 3 * search,
                "products": 2 * _least("rank", "products") / panels,
                "cubes": 1 / panels,
                "rank_weights": 60 / panels,
                "rank_squares": 30 / panels,
            }
    return Rates(
        device_kind="cuda",
        device_name=card.name,
        source="estimated",
        product=product,
        forward=_FORWARD * card.float32,
        logits=_BANDWIDTH * card.bandwidth / _BYTES,
        disk_read=_DISK,
        disk_write=_DISK,
        terms=terms,
        uncertainty=_UNCERTAINTY,
        device_memory=card.memory,
        notes=(
            f"times on {card.name} are estimated from its published peaks ({card.float32 / 1e12:.1f} TFLOPS float32, "
            f"{card.bandwidth / 1e9:.0f} GB/s): nobody measured them, they may be {_UNCERTAINTY:.0f} times shorter or "
            "longer",
        ),
    )


def _least(kind: Kind, feature: str) -> float:
    return FLOORS[kind][feature]


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum()).removeprefix("nvidia")
