"""Cells: the distinct (matrix, config) of one layer, each decomposed once and kept packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.compressed import CompressedMatrix
from compress_core.config import RAW_CODEBOOK, CompressionConfig
from compress_core.context import MatrixContext, prepare_matrix
from compress_core.decompose import compress_matrix, compress_prepared
from compress_core.matrix import MatrixSpec
from compress_core.precision import exact_float32
from compress_core.shared_inputs import SharedInputs
from compress_core.sweep import in_groups
from compress_core.verify.branches import LayerConfigs

#: what needs neither rotation nor H
_WEIGHT_ALONE = ("rtn", RAW_CODEBOOK)
#: what decomposing a weight costs, in units of what one token's product with it costs. Rough: a layer repeats the one
#: before it, so these only have to tell the parts of one layer apart
_COSTS = {"rtn": 20, RAW_CODEBOOK: 5, "gptq": 500, "scalar": 2_000, "e8": 10_000, "trellis": 30_000}


def distinct_cells(
    specs: Sequence[MatrixSpec], settings: Iterable[LayerConfigs]
) -> dict[MatrixSpec, tuple[CompressionConfig, ...]]:
    """The configs that each matrix of a layer is wanted at, each once."""
    found: dict[MatrixSpec, dict[str, CompressionConfig]] = {spec: {} for spec in specs}
    for configs in settings:
        for spec, config in zip(specs, configs, strict=True):
            if config is not None:
                found[spec].setdefault(config.config_hash, config)
    return {spec: tuple(of_spec.values()) for spec, of_spec in found.items() if of_spec}


def cell_cost(spec: MatrixSpec, config: CompressionConfig) -> float:
    """What decomposing costs, in products of a weight and a token."""
    outer = 1 + config.iterations if config.rank else 1
    return float(spec.n_weights * _COSTS[config.codebook] * outer)


@torch.no_grad()
def compress_cells(
    checkpoint: Checkpoint,
    spec: MatrixSpec,
    configs: Sequence[CompressionConfig],
    inputs: SharedInputs,
    device: torch.device,
    on_cell: Callable[[CompressionConfig, float], None],
) -> dict[str, CompressedMatrix]:
    """A matrix at each config, by the config's hash; each is what ``compress_matrix`` gives alone.

    Args:
        inputs: asked for the matrix's H where a config has a use for it.
        on_cell: called with a config and the fraction of its decomposition that is done, with 1 once; may raise
            Interrupted.

    Raises:
        NonFiniteValues: NaN in the weight (named), or in H.
        CalibrationError: no H for the matrix.
    """
    weight = read_matrix(checkpoint, spec).to(device)
    contexts: dict[int, MatrixContext] = {}
    found: dict[str, CompressedMatrix] = {}
    with exact_float32():
        for number in in_groups(configs):
            config = configs[number]

            def inner(fraction: float, config: CompressionConfig = config) -> None:
                if fraction < 1:
                    on_cell(config, fraction)

            if config.codebook in _WEIGHT_ALONE:
                compressed = compress_matrix(weight, None, config, device=device)
            else:
                if config.seed not in contexts:
                    shared = inputs.of(spec)
                    contexts[config.seed] = prepare_matrix(
                        weight, shared.h_II, config.seed, device, shared.context(config.seed)
                    )
                compressed = compress_prepared(contexts[config.seed], config, progress=inner)
            found[config.config_hash] = compressed
            on_cell(config, 1.0)
    return found
