import pytest
import torch

from compress_core.incoherence import (
    InputRotation,
    hadamard_matrix,
    hartley_matrix,
    orthogonal_transform,
    split_width,
)

CPU = torch.device("cpu")


def test_split_width() -> None:
    assert split_width(29568) == (128, 231)
    assert split_width(18944) == (512, 37)
    assert split_width(997) == (1, 997)
    with pytest.raises(ValueError, match="at least 1"):
        split_width(0)


@pytest.mark.parametrize("size", [1, 3, 37, 43, 231, 997])
def test_hartley_is_symmetric_and_its_own_inverse(size: int) -> None:
    h = hartley_matrix(size)
    assert torch.equal(h, h.T)
    assert torch.allclose(h @ h, torch.eye(size, dtype=h.dtype), atol=1e-12)
    assert h.abs().max() <= (2 / size) ** 0.5 + 1e-12


def test_hadamard_needs_a_power_of_two() -> None:
    h = hadamard_matrix(64)
    assert torch.allclose(h @ h, torch.eye(64, dtype=h.dtype), atol=1e-13)
    with pytest.raises(ValueError, match="power of two"):
        hadamard_matrix(12)


@pytest.mark.parametrize("width", [1, 2, 8, 13, 64, 172, 344, 512, 997, 1024])
def test_transform_is_orthogonal_and_self_inverse(width: int) -> None:
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    y = orthogonal_transform(x)
    assert torch.allclose(y.norm(dim=1), x.norm(dim=1), rtol=1e-5)
    assert torch.allclose(orthogonal_transform(y), x, atol=2e-6 * width**0.5)


def test_rotation_keeps_weighted_errors(make_layer) -> None:
    w, h = make_layer(8, 172)
    rotation = InputRotation.make(172, 5, CPU)
    rotated, rotated_h = rotation.rotate(w), rotation.rotate_hessian(h)
    assert torch.allclose(rotation.unrotate(rotated), w, atol=1e-6)
    assert torch.equal(rotated_h, rotated_h.T)
    assert torch.allclose(((rotated @ rotated_h) * rotated).sum(), ((w @ h) * w).sum(), rtol=1e-4)


def test_signs_follow_from_the_seed() -> None:
    signs = [InputRotation.make(64, seed, CPU).signs_I for seed in (0, 0, 1)]
    assert torch.equal(signs[0], signs[1])
    assert not torch.equal(signs[0], signs[2])
    assert set(signs[0].tolist()) == {-1.0, 1.0}


def test_an_outlier_is_spread() -> None:
    x = torch.zeros(1, 172)
    x[0, 3] = 1.0
    assert InputRotation.make(172, 0, CPU).rotate(x).abs().max() <= (2 / 172) ** 0.5 + 1e-6
