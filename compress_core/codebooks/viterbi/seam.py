"""Where a tail-biting search looks for the state at the seam: shared by the kernels of all devices.

The last step of a cyclic path meets its first one at the seam. A free search over the weights on both sides of it tells
which bits the best path has there; a second search over the tile is then held to start and end with them. At 2 bits and
2^12 states, windows of 24, 72 and 256 weights lose 3.2, 1.5 and 0.3 % against tiles of 4096 weights: it pays to see a
tile of usual size whole. A short tile is walked round several times: the middle of that path is nearly cyclic.
"""

from __future__ import annotations

#: weights on each side of the seam that the free search covers, in units of the trellis's memory of ⌈L/k⌉ steps:
#: at least and at most
_MEMORIES = (16, 24)
#: tiles of up to this many bits are enumerated, whatever the states
_ENUMERATED_BITS = 12


def seam_half(length: int, bits: int, log_states: int) -> int:
    """Steps of the free search on each side of the seam; more than half the length goes round the tile again."""
    memory = -(-log_states // bits)
    least, most = _MEMORIES[0] * memory, _MEMORIES[1] * memory
    return min(max((length + 1) // 2, least), most)


def enumerated(length: int, bits: int, log_states: int) -> bool:
    """Whether a tile is so short that all its symbols are tried: a path that is held at both ends has little choice."""
    return length * bits <= max(log_states, _ENUMERATED_BITS)
