"""H = E[x xᵀ] equals what hooks on the whole model collect; files are whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from compress_core.calibrate.calibration import Calibration, pack_half, unpack_half
from compress_core.calibrate.run import calibrate_model
from compress_core.checkpoint import open_checkpoint
from compress_core.errors import CalibrationError, Interrupted
from compress_core.matrix import MatrixKey
from compress_core.text.tokens import TokenWindows


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral"])
def test_equals_hooks_on_the_whole_model(
    tiny_checkpoints: dict[str, Path], random_windows: Callable[..., TokenWindows], tmp_path: Path, family: str
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints[family])
    windows = random_windows(7, 18)
    calibration = calibrate_model(
        checkpoint, windows, tmp_path / "h.safetensors", source="random", seed=3, batch_tokens=2 * 18
    )
    whole = AutoModelForCausalLM.from_pretrained(tiny_checkpoints[family], dtype=torch.float32)
    seen: dict[str, torch.Tensor] = {}
    for spec in checkpoint.matrices():
        name = spec.tensor_name.removesuffix(".weight")
        whole.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: seen.__setitem__(name, inputs[0].double().flatten(0, 1))
        )
    with torch.no_grad():
        whole(torch.from_numpy(windows.ids).long())
    for spec in checkpoint.matrices():
        x = seen[spec.tensor_name.removesuffix(".weight")]
        expected = x.T @ x / x.shape[0]
        hessian = calibration.hessian(spec.key)
        assert hessian.dtype == torch.float32
        assert torch.equal(hessian, hessian.T)
        torch.testing.assert_close(hessian.double(), expected, atol=1e-5 * float(expected.diagonal().mean()), rtol=1e-4)


def test_header_says_where_it_came_from(
    qwen2: Path, random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(qwen2)
    windows = random_windows(4, 10)
    path = tmp_path / "new" / "h.safetensors"
    messages: list[tuple[int, int, str]] = []
    calibrate_model(checkpoint, windows, path, source="random", seed=5, progress=lambda *a: messages.append(a))
    info = Calibration.open(path, checkpoint).info
    assert (info.samples, info.length, info.n_tokens, info.seed, info.source) == (4, 10, 40, 5, "random")
    assert (info.model_fingerprint, info.token_sha256) == (checkpoint.fingerprint, windows.sha256)
    assert (info.dtype, info.device_kind) == ("float32", "cpu")
    assert [m[:2] for m in messages] == [(1, 3), (2, 3), (3, 3)]
    with safe_open(path, "pt") as file:  # an ordinary safetensors file
        assert file.get_slice("0.down").get_shape() == [84 * 85 // 2]


def test_same_input_same_bytes(qwen2: Path, random_windows: Callable[..., TokenWindows], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(qwen2)
    for name in ("a", "b"):
        calibrate_model(checkpoint, random_windows(4, 10), tmp_path / name, source="random", seed=0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_interruption_leaves_no_file(qwen2: Path, random_windows: Callable[..., TokenWindows], tmp_path: Path) -> None:
    def stop(done: int, total: int, message: str) -> None:
        if done == 2:
            raise Interrupted("cancelled")

    path = tmp_path / "h.safetensors"
    with pytest.raises(Interrupted):
        calibrate_model(open_checkpoint(qwen2), random_windows(2, 5), path, source="x", seed=0, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_ids_of_another_tokenizer(qwen2: Path, random_windows: Callable[..., TokenWindows], tmp_path: Path) -> None:
    windows = random_windows(2, 5)
    with pytest.raises(CalibrationError, match="vocabulary of 320"):
        calibrate_model(
            open_checkpoint(qwen2), replace(windows, ids=windows.ids + 300), tmp_path / "h", source="x", seed=0
        )


def test_files_that_do_not_fit(
    tiny_checkpoints: dict[str, Path], qwen2_calibration: Calibration, shared_data: Path, tmp_path: Path
) -> None:
    path = qwen2_calibration.path
    with pytest.raises(CalibrationError, match="other weights"):
        Calibration.open(path, open_checkpoint(tiny_checkpoints["llama"]))
    with pytest.raises(CalibrationError, match=r"H of 0\.qkv must be"):
        Calibration.open(path, open_checkpoint(shared_data / "models" / "stories260K"))
    checkpoint = open_checkpoint(tiny_checkpoints["qwen2"])
    with pytest.raises(CalibrationError, match="cannot read"):
        Calibration.open(tmp_path / "none", checkpoint)
    with pytest.raises(CalibrationError, match="no calibration file"):
        Calibration.open(tiny_checkpoints["qwen2"] / "model.safetensors", checkpoint)
    (tmp_path / "short").write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CalibrationError, match="truncated"):
        Calibration.open(tmp_path / "short", checkpoint)
    with pytest.raises(CalibrationError, match=r"no H for matrix 9\.q"):
        qwen2_calibration.hessian(MatrixKey(9, "q"))


@given(st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_half_round_trip(n: int) -> None:
    x = torch.randn(n, n, generator=torch.Generator().manual_seed(n))
    symmetric = x + x.T
    assert torch.equal(unpack_half(pack_half(symmetric), n), symmetric)
