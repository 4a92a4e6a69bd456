"""Company: what compressing a layer costs when all others are compressed too.

Every matrix is compressed at one config, x0; then one whole layer at a time is restored. What that saves, over what the
layer's matrices cost each alone at this config, says how much dearer (or cheaper) its damage is in company: what an
early layer does wrong, later ones add to. n_layers + 1 evaluations, in one pass over the layers, correct what measuring
each matrix alone cannot see (docs/decisions/026).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from compress_core.config import CompressionConfig
from compress_core.matrix import MatrixSpec
from compress_core.progress import Progress, silent
from compress_core.sensitivity.approximations import Approximations
from compress_core.sensitivity.bench import Bench
from compress_core.stream.states import DEFAULT_RAM_BYTES
from compress_core.verify.joint import joint_losses

METHOD = "company"


@dataclass(frozen=True, slots=True)
class LayerCompany:
    """KL(x0) − KL(x0 with one layer restored)."""

    layer_idx: int
    #: of x0, before ranks are cut
    config: CompressionConfig
    #: nats a token of each sequence
    saved_per_sequence: tuple[float, ...]


def layer_company(
    bench: Bench,
    approximations: Approximations,
    config: CompressionConfig,
    *,
    ram_bytes: int = DEFAULT_RAM_BYTES,
    folder: Path | None = None,
    progress: Progress = silent,
) -> list[LayerCompany]:
    """What restoring each layer saves where every matrix is compressed at ``config`` (ranks are cut).

    Args:
        approximations: should keep what it makes: nothing is decomposed here that KL anchors of this config were
            measured with.
        ram_bytes, folder: for hidden states of all n_layers + 1 models, see ``joint_losses``.
        progress: told (done, total, what is being done); may raise Interrupted.

    Raises:
        NonFiniteValues, CalibrationError, DeviceNotFound, OutOfMemory, Interrupted: as ``joint_losses``.
    """
    checkpoint = bench.checkpoint
    whole = {spec.key: config.clamped(spec.out_features, spec.in_features) for spec in checkpoint.matrices()}
    layers = range(checkpoint.n_layers)
    restored = [{key: c for key, c in whole.items() if key.layer_idx != layer} for layer in layers]

    def tell(message: str) -> None:
        progress(0, 1, message)

    def weights_of(spec: MatrixSpec, config: CompressionConfig) -> Tensor:
        return approximations.of(spec, config).w_hat_OI

    approximations.prepare(((spec, whole[spec.key]) for spec in checkpoint.matrices()), tell)
    kl_AN = joint_losses(
        checkpoint,
        None,
        bench.tokens,
        [whole, *restored],
        names=[f"the model at {config}", *(f"the model at {config} with layer {layer} restored" for layer in layers)],
        device=bench.device,
        dtype=bench.dtype_name,
        batch_tokens=bench.batch_tokens,
        ram_bytes=ram_bytes,
        scratch=folder,
        weights_of=weights_of,
        progress=progress,
    ).kl_AN
    return [LayerCompany(layer, config, tuple((kl_AN[0] - kl_AN[1 + layer]).tolist())) for layer in layers]
