"""Find the matrices of one decoder layer by the ends of its tensors' names.

What is looked for, below the layer's own prefix (anything may stand in front):

- ``q_proj.weight`` … ``down_proj.weight``: a matrix each;
- ``qkv_proj.weight``: q, k and v as rows of one tensor, ``gate_up_proj.weight``: gate and up (Phi-3);
- ``experts.E.gate_proj.weight``, ``experts.E.up_proj.weight``, ``experts.E.down_proj.weight``: routed experts E = 0 …

Torch-free.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from compress_core.checkpoint.decoder_config import DecoderConfig
from compress_core.checkpoint.headers import FLOAT_DTYPES, TensorHeader
from compress_core.errors import CheckpointError, UnsupportedArchitecture
from compress_core.matrix import ATTENTION_PROJECTIONS, MLP_PROJECTIONS, NO_EXPERT, PROJECTIONS, MatrixKey, MatrixSpec

#: tensors that hold several projections as rows, one after another
FUSED: dict[str, tuple[str, ...]] = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
_PROJECTION = re.compile(
    r"^(?:.*?\.)?(?:experts\.(0|[1-9][0-9]{0,5})\.)?(q|k|v|o|gate|up|down|qkv|gate_up)_proj\.weight$"
)
#: all experts of a layer in one tensor of three dimensions
_STACKED = re.compile(r"(?:^|\.)experts\.\w+$")
_NUMBER = re.compile(r"\.\d+\.")


def projections_in(tails: Collection[str]) -> set[str]:
    """The projections that tensors with these names, without the layer's prefix, hold."""
    found = (match[2] for tail in tails if (match := _PROJECTION.match(tail)))
    return {projection for name in found for projection in FUSED.get(name, (name,))}


def find_matrices(
    tensors: Mapping[str, TensorHeader], layer: str, layer_idx: int, tails: Collection[str], config: DecoderConfig
) -> list[MatrixSpec]:
    """The matrices of layer ``layer``, ordered by expert (those without one first), then as PROJECTIONS are.

    Args:
        tails: names of the layer's tensors, without ``layer`` and the dot behind it.

    Raises:
        UnsupportedArchitecture: a projection that is missing or there more than once, an expert that is missing, or a
            tensor that is no matrix of floating point numbers; the message names it.
        CheckpointError: a fused tensor has other rows than config.json promises.
    """
    return _Layer(tensors, layer, layer_idx, tails, config).matrices()


@dataclass(frozen=True, slots=True)
class _Layer:
    tensors: Mapping[str, TensorHeader]
    name: str
    layer_idx: int
    tails: Collection[str]
    config: DecoderConfig

    def matrices(self) -> list[MatrixSpec]:
        found: dict[tuple[int, str], str] = {}
        fused: set[str] = set()
        for tail in sorted(self.tails):
            if not (match := _PROJECTION.match(tail)):
                continue
            expert = NO_EXPERT if match[1] is None else int(match[1])
            if match[2] in FUSED:
                fused.add(tail)
            for projection in FUSED.get(match[2], (match[2],)):
                if (expert, projection) in found:
                    raise UnsupportedArchitecture(
                        f"projection {projection!r} is there twice in {self.name} "
                        f"({found[expert, projection]} and {tail}): one of them would be left out"
                    )
                found[expert, projection] = tail
        self._check_complete(found)
        order = {projection: number for number, projection in enumerate(PROJECTIONS)}
        return [
            self._spec(expert, projection, tail, tail in fused)
            for (expert, projection), tail in sorted(found.items(), key=lambda item: (item[0][0], order[item[0][1]]))
        ]

    def _check_complete(self, found: Collection[tuple[int, str]]) -> None:
        per_expert: dict[int, set[str]] = defaultdict(set)
        for expert, projection in found:
            per_expert[expert].add(projection)
        plain = per_expert.pop(NO_EXPERT, set())
        for projection in PROJECTIONS:
            # a layer of routed experts alone has no MLP beside them; half a one is an error
            optional = per_expert and projection in MLP_PROJECTIONS and plain <= set(ATTENTION_PROJECTIONS)
            if projection not in plain and not optional:
                raise self._missing(projection, f"{projection}_proj.weight")
        for expert in range(max(per_expert, default=-1) + 1):
            for projection in MLP_PROJECTIONS:
                if projection not in per_expert[expert]:
                    raise self._missing(projection, f"experts.{expert}.{projection}_proj.weight")

    def _missing(self, projection: str, tail: str) -> UnsupportedArchitecture:
        stacked = [t for t in self.tails if _STACKED.search(t) and len(self.tensors[f"{self.name}.{t}"].shape) == 3]
        if stacked and projection in MLP_PROJECTIONS:
            return UnsupportedArchitecture(
                f"{self.name}.{min(stacked)} holds all experts in one tensor: expected one matrix an expert "
                "(experts.0.gate_proj.weight …), which is how transformers saves Qwen's"
            )
        matrices = {_NUMBER.sub(".N.", t) for t in self.tails if len(self.tensors[f"{self.name}.{t}"].shape) == 2}
        return UnsupportedArchitecture(
            f"projection {projection!r} not found: no tensor {self.name}.*.{tail}; "
            f"the layer's matrices are {', '.join(sorted(matrices)) or 'none'}"
        )

    def _spec(self, expert: int, projection: str, tail: str, fused: bool) -> MatrixSpec:
        tensor = self.tensors[f"{self.name}.{tail}"]
        if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.dtype not in FLOAT_DTYPES:
            raise UnsupportedArchitecture(
                f"{tensor.name} has dtype {tensor.dtype} and shape {list(tensor.shape)}: expected a matrix of "
                f"{', '.join(FLOAT_DTYPES)}; take the unquantised checkpoint"
            )
        key = MatrixKey(self.layer_idx, projection, expert)
        out_features, in_features = tensor.shape
        if not fused:
            return MatrixSpec(key, out_features, in_features, tensor.name)
        first, end = self._rows(key, tensor)
        return MatrixSpec(key, end - first, in_features, tensor.name, (first, end))

    def _rows(self, key: MatrixKey, tensor: TensorHeader) -> tuple[int, int]:
        """First and last + 1 row of a matrix in a fused tensor."""
        n_rows = tensor.shape[0]
        if key.projection in MLP_PROJECTIONS:
            if n_rows % 2:
                raise CheckpointError(f"{tensor.name} has {n_rows} rows: gate and up cannot have half of them each")
            return (0, n_rows // 2) if key.projection == "gate" else (n_rows // 2, n_rows)
        q_out, kv_out = self.config.attention_widths(self.layer_idx)
        if q_out is None or kv_out is None:
            raise CheckpointError(
                f"{tensor.name} holds q, k and v, but config.json does not say how many rows each has: "
                "it lacks num_attention_heads, or hidden_size and head_dim"
            )
        if n_rows != q_out + 2 * kv_out:
            raise CheckpointError(
                f"config.json and tensors disagree: {tensor.name} has {n_rows} rows, "
                f"config.json asks for {q_out} + {kv_out} + {kv_out}"
            )
        return {"q": (0, q_out), "k": (q_out, q_out + kv_out), "v": (q_out + kv_out, n_rows)}[key.projection]
