"""What the arrays of an archive are called, and which inputs of a model they are. Torch-free.

An array is the second moment E[x xᵀ] (n, n) of one input, or its diagonal (n,). Its name tells the layer, and the
projection or input, in any order and with words around them that say nothing more:

    3.qkv    3.down    layer3_down_proj    model.layers.3.self_attn.q_proj    layers.3.mlp.experts.7.down_proj.weight

q, k and v read one input, gate and up another, so each of their names stands for the input (see ``input_name``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compress_core.calibrate.archive import ArrayHeader
from compress_core.calibrate.inputs import INPUT_OF, input_name
from compress_core.errors import CalibrationError
from compress_core.matrix import NO_EXPERT, MatrixSpec

#: an input of the model: (layer_idx, input name)
Input = tuple[int, str]

#: words that name an input; the rest are projections
_ALIASES = {
    "qkv": "qkv",
    "gateup": "gate_up",
    "wq": "qkv",
    "wk": "qkv",
    "wv": "qkv",
    "wo": "o",
    "w1": "gate_up",
    "w3": "gate_up",
    "w2": "down",
    "query": "qkv",
    "key": "qkv",
    "value": "qkv",
    "out": "o",
    **INPUT_OF,
}
_FILLER_WORDS = """
    model transformer decoder language layer layers l h block blocks self attn attention mlp ffn feed forward proj
    linear weight input inputs in hessian hessians xtx xxt cov covariance second moment moments diag diagonal stats
    statistics act activation activations shared expert experts e sparse moe
"""
#: words that say nothing more
_FILLERS = frozenset(_FILLER_WORDS.split())
_NUMBERED = re.compile(r"^(layers?|blocks?|l|h|experts?|e)([0-9]+)$")
#: longer numbers count neither layers nor experts
_DIGITS = 9
_EXPERT_WORDS = frozenset({"expert", "experts", "e"})


@dataclass(frozen=True)
class Match:
    """Which arrays stand for which inputs of a model."""

    #: input -> names of its second moments, in the order of the archive
    moments: dict[Input, list[str]] = field(default_factory=dict)
    #: input -> names of its diagonals
    diagonals: dict[Input, list[str]] = field(default_factory=dict)
    missing: list[Input] = field(default_factory=list)
    #: arrays that name no input of this model
    unused: list[str] = field(default_factory=list)

    @property
    def diagonal_only(self) -> list[Input]:
        return [key for key in self.diagonals if key not in self.moments]

    def report(self) -> dict[str, Any]:
        """JSON-able: found, diagonal_only, missing (inputs as ``LAYER.INPUT``), unused (names)."""
        found = sorted({*self.moments, *self.diagonals})
        return {
            "found": [input_label(key) for key in found],
            "diagonal_only": [input_label(key) for key in sorted(self.diagonal_only)],
            "missing": [input_label(key) for key in self.missing],
            "unused": self.unused,
        }

    def check_complete(self) -> None:
        """Every input has an array.

        Raises:
            CalibrationError: lists those that have none, and says what can be done.
        """
        if self.missing:
            names = ", ".join(map(input_label, self.missing[:20])) + (", …" if len(self.missing) > 20 else "")
            raise CalibrationError(
                f"the archive has no statistics for {len(self.missing)} inputs of the model: {names}. Add them, ask "
                'for npz_fill "identity" in their place, or calibrate from a text, which computes all of them'
                + (
                    f"; {len(self.unused)} arrays name no input of this model: {', '.join(self.unused[:5])}"
                    if self.unused
                    else ""
                )
            )


def input_label(key: Input) -> str:
    """``3.qkv`` or ``3.down.7``."""
    return f"{key[0]}.{key[1]}"


def parse_name(name: str) -> Input | None:
    """The input that a name stands for, or None where it names none, or more than one."""
    words: list[str] = []
    for word in re.split(r"[\s._/:\-]+", name.lower()):
        numbered = _NUMBERED.match(word)
        words += [numbered[1], numbered[2]] if numbered else [word] if word else []
    layer: int | None = None
    expert = NO_EXPERT
    inputs: list[str] = []
    before = ""
    for word in words:
        if word.isdecimal():
            if len(word) > _DIGITS:
                return None
            if before in _EXPERT_WORDS or layer is not None:
                if expert != NO_EXPERT:
                    return None
                expert = int(word)
            else:
                layer = int(word)
        elif word in _ALIASES:
            inputs.append(_ALIASES[word])
        elif word not in _FILLERS:
            return None
        before = word
    if layer is None or len(set(inputs)) != 1:
        return None
    return layer, inputs[0] if expert == NO_EXPERT else f"{inputs[0]}.{expert}"


def match_arrays(arrays: Mapping[str, ArrayHeader], specs: Iterable[MatrixSpec]) -> Match:
    """Which inputs of the model the arrays stand for, by their headers.

    Raises:
        CalibrationError: an array of a known input has another shape than the model's, or does not hold real numbers;
            or no array fits the model at all.
    """
    widths: dict[Input, int] = {}
    for spec in specs:
        widths.setdefault((spec.key.layer_idx, input_name(spec.key)), spec.in_features)
    moments: dict[Input, list[str]] = defaultdict(list)
    diagonals: dict[Input, list[str]] = defaultdict(list)
    unused = []
    for header in arrays.values():
        key = parse_name(header.name)
        if key is None or key not in widths:
            unused.append(header.name)
            continue
        width = widths[key]
        if header.shape not in ((width, width), (width,)):
            raise CalibrationError(
                f"array {header.name!r} has shape {list(header.shape)}, but {input_label(key)} of this model is "
                f"{width} wide: expected [{width}, {width}] or its diagonal, [{width}]"
            )
        if header.dtype.kind != "f":
            raise CalibrationError(f"array {header.name!r} holds {header.dtype}: expected real floating-point numbers")
        (moments if len(header.shape) == 2 else diagonals)[key].append(header.name)
    if not moments and not diagonals:
        raise CalibrationError(
            f"none of the {len(unused)} arrays names an input of this model ({', '.join(unused[:5])}): "
            "call them LAYER.INPUT, such as 3.qkv, 3.o, 3.gate_up, 3.down"
        )
    missing = [key for key in widths if key not in moments and key not in diagonals]
    return Match(dict(moments), dict(diagonals), missing, unused)
