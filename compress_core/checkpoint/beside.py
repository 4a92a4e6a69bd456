"""Check the tensors beside the matrices (norms, biases, routers, embedding, head) by their headers alone. Torch-free.

Each of them is needed when its layer runs, which in a large model is hours after the start.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from itertools import groupby

from compress_core.checkpoint.decoder_config import DecoderConfig
from compress_core.checkpoint.headers import FLOAT_DTYPES, TensorHeader
from compress_core.errors import CheckpointError
from compress_core.matrix import NO_EXPERT, MatrixSpec

#: what a module's parameters are called; other tensors of a layer are buffers, which may be of any kind
_PARAMETERS = (".weight", ".bias")
#: a part of a layer, and its matrices: where they lie in the layer, and their shapes
_Kind = tuple[str, tuple[tuple[str, int, int], ...]]


def check_beside(
    prefix: str, layers: Mapping[int, tuple[MatrixSpec, ...]], tensors: Mapping[str, TensorHeader]
) -> None:
    """Compare the layers with each other; biases and routers with the matrices that they belong to.

    Args:
        prefix: module path of the list of layers.
        layers: each layer's matrices.

    Raises:
        CheckpointError: a parameter that modules of the same matrices have and one has not, or has in another shape; a
            bias or a router that does not fit; a parameter without values, or one of whole numbers. Names the tensor.
    """
    alike: dict[_Kind, dict[int, dict[str, tuple[int, ...]]]] = defaultdict(dict)
    parameters = _parameters(prefix, layers, tensors)
    for layer_idx, specs in layers.items():
        layer = f"{prefix}.{layer_idx}"
        for tail in parameters[layer_idx]:
            check_parameter(tensors[f"{layer}.{tail}"])
        _check_fit(layer, specs, parameters[layer_idx], tensors)
        # attention and MLP are compared by themselves: layers may differ in one of them
        for part, found in groupby(sorted(parameters[layer_idx]), key=lambda tail: tail.partition(".")[0]):
            own = tuple(spec for spec in specs if spec.tensor_name.startswith(f"{layer}.{part}."))
            kind = tuple((s.name.removeprefix(f"{layer}."), s.out_features, s.in_features) for s in own or specs)
            alike[part if own else "", kind].setdefault(layer_idx, {}).update(
                {tail: parameters[layer_idx][tail] for tail in found}
            )
    for members in alike.values():
        _check_alike(prefix, members)


def _check_fit(
    layer: str,
    specs: tuple[MatrixSpec, ...],
    parameters: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, TensorHeader],
) -> None:
    """A bias has a value for each row of its matrix, a router a row for each expert."""
    wanted: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        module, _, _ = spec.tensor_name.rpartition(".")
        wanted[f"{module}.bias"] = (tensors[spec.tensor_name].shape[0],)
        if spec.key.expert_idx != NO_EXPERT and spec.key.projection != "down":
            router = f"{module.rpartition('.experts.')[0]}.gate.weight"
            wanted[router] = (1 + max(other.key.expert_idx for other in specs), spec.in_features)
    for name, shape in wanted.items():
        found = parameters.get(name.removeprefix(f"{layer}."))
        if found is not None and found != shape:
            raise CheckpointError(
                f"{name} has shape {list(found)}, the matrices that it belongs to ask for {list(shape)}: "
                "copy or download the checkpoint again"
            )


def check_parameter(tensor: TensorHeader, shape: tuple[int | None, ...] | None = None) -> None:
    """A parameter has values, of floating point, and this shape (None: any size, or any shape).

    Raises:
        CheckpointError: it does not; names it.
    """
    if 0 in tensor.shape or tensor.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{tensor.name} has dtype {tensor.dtype} and shape {list(tensor.shape)}: expected values of "
            f"{', '.join(FLOAT_DTYPES)}; take the unquantised checkpoint, or copy or download it again"
        )
    if shape is not None and (
        len(shape) != len(tensor.shape)
        or any(want is not None and want != have for want, have in zip(shape, tensor.shape, strict=True))
    ):
        wanted = ["any" if size is None else size for size in shape]
        raise CheckpointError(
            f"config.json and tensors disagree: {tensor.name} has shape {list(tensor.shape)}, "
            f"config.json asks for {wanted}"
        )


def check_routing(decoder: DecoderConfig, layer_idx: int, n_experts: int) -> None:
    """No more experts are chosen for a token than there are.

    Raises:
        CheckpointError: num_experts_per_tok is not between 1 and the layer's experts.
    """
    chosen = decoder.n_chosen_experts
    if n_experts and chosen is not None and not 1 <= chosen <= n_experts:
        raise CheckpointError(
            f"config.json says num_experts_per_tok = {chosen}: layer {layer_idx} has {n_experts} experts to choose from"
        )


def _parameters(
    prefix: str, layers: Collection[int], tensors: Mapping[str, TensorHeader]
) -> dict[int, dict[str, tuple[int, ...]]]:
    """Each layer's parameters by the ends of their names, and their shapes."""
    found: dict[str, dict[str, tuple[int, ...]]] = {str(layer_idx): {} for layer_idx in layers}
    for name, tensor in tensors.items():
        number, _, tail = name.removeprefix(f"{prefix}.").partition(".")
        if name.startswith(f"{prefix}.") and number in found and tail.endswith(_PARAMETERS):
            found[number][tail] = tensor.shape
    return {int(number): parameters for number, parameters in found.items()}


def _check_alike(prefix: str, layers: Mapping[int, Mapping[str, tuple[int, ...]]]) -> None:
    """Layers with the same matrices have the same parameters: what most of them have, all must."""
    tails = sorted({tail for parameters in layers.values() for tail in parameters})
    for tail in tails:
        shapes = Counter(parameters.get(tail) for parameters in layers.values())
        if len(shapes) == 1:
            continue
        usual = max((shape for shape in shapes if shape is not None), key=lambda shape: shapes[shape])
        for layer_idx, parameters in layers.items():
            if (shape := parameters.get(tail)) != usual:
                have = "is missing" if shape is None else f"has shape {list(shape)}"
                raise CheckpointError(
                    f"{prefix}.{layer_idx}.{tail} {have}: other layers with the same matrices have one of shape "
                    f"{list(usual)}; copy or download the checkpoint again"
                )
