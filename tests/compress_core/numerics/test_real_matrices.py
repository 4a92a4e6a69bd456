"""On a real model: never above round-to-nearest at the same bits."""

import math
from functools import cache

import pytest
import torch
from safetensors import safe_open

from compress_core import CompressionConfig, sweep_matrix


@pytest.fixture(scope="module")
def real_weights(shared_data):
    path = shared_data / "models" / "stories260K" / "model.safetensors"
    with safe_open(path, "pt") as f:
        # the first, the middle and the last of five layers
        parts = [n.split(".") for n in f.keys()]  # noqa: SIM118
        names = [".".join(p) for p in parts if p[1] == "layers" and p[2] in "024" and p[-2].endswith("_proj")]
        return {n: f.get_tensor(n).float() for n in sorted(names)}


@cache
def proxy_hessian(width: int) -> torch.Tensor:
    """A Hessian with a power-law spectrum and outlier channels; the model's own inputs are not needed for this."""
    g = torch.Generator().manual_seed(width)
    x = torch.randn(1024, width, generator=g) * torch.arange(1, width + 1) ** -0.4
    x = x @ torch.linalg.qr(torch.randn(width, width, generator=g)).Q
    x[:, :2] *= 4
    x += 0.1
    return x.T @ x / x.shape[0]


@pytest.mark.parametrize("codebook", ["e8", "scalar"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_never_above_round_to_nearest(codebook: str, bits: int, real_weights) -> None:
    ratios = {}
    for name, w in real_weights.items():
        configs = [CompressionConfig(b_q=bits, codebook=book) for book in ("rtn", codebook)]
        rtn, ours = sweep_matrix(w, proxy_hessian(w.shape[1]), configs)
        ratios[name] = ours.calibration_weighted_error / rtn.calibration_weighted_error
        assert ours.nbytes <= rtn.nbytes
    assert max(ratios.values()) < 1.0, max(ratios, key=ratios.__getitem__)
    assert math.prod(ratios.values()) ** (1 / len(ratios)) < 0.6
