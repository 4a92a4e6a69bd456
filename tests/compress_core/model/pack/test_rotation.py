"""Activations are rotated by the transform that weights were, for any width and number of tokens."""

from __future__ import annotations

import pytest
import torch

from compress_core.incoherence import InputRotation
from compress_core.pack.rotation import activation_rotation

CPU = torch.device("cpu")


@pytest.mark.parametrize("width", [1, 2, 8, 13, 43, 84, 172, 256, 344, 688, 896, 1024, 1536])
def test_it_is_the_rotation_of_the_weights(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, width, generator=torch.Generator().manual_seed(width))
    expected = InputRotation.make(width, 5, CPU).rotate(x)
    rotation = activation_rotation(width, 5, CPU)
    torch.testing.assert_close(rotation.rotate(x), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("compress_core.pack.rotation._STRIP", 3 * width)
    torch.testing.assert_close(rotation.rotate(x), expected, rtol=1e-5, atol=1e-5)
    assert rotation.rotate(x[:0]).shape == (0, width)
