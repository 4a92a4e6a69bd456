"""H = E[x xᵀ] equals what hooks on the whole model collect; a folder is whole or says that it is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from compress_core.calibrate import second_moment
from compress_core.calibrate.calibration import Calibration
from compress_core.calibrate.half import half_pieces, half_size, read_square, square_panels
from compress_core.calibrate.layer_file import layer_path
from compress_core.calibrate.recipe import MANIFEST, TOKENS
from compress_core.calibrate.run import calibrate_model
from compress_core.calibrate.second_moment import SecondMoment
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.headers import read_header
from compress_core.checkpoint.writer import Entry, SafetensorsWriter
from compress_core.errors import CalibrationError, NonFiniteValues
from compress_core.matrix import MatrixKey
from compress_core.text.tokens import TokenWindows


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral"])
def test_equals_hooks_on_the_whole_model(
    tiny_checkpoints: dict[str, Path], random_windows: Callable[..., TokenWindows], tmp_path: Path, family: str
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints[family])
    windows = random_windows(7, 18)
    calibration = calibrate_model(checkpoint, windows, tmp_path / "h", source="random", seed=3, batch_tokens=2 * 18)
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


def test_the_folder_says_where_it_came_from(
    qwen2: Path, random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(qwen2)
    windows = random_windows(4, 10)
    path = tmp_path / "new" / "h"
    messages: list[tuple[int, int, str]] = []
    calibrate_model(
        checkpoint, windows, path, source="random", seed=5, batch_tokens=20, progress=lambda *a: messages.append(a)
    )
    calibration = Calibration.open(path, checkpoint)
    info = calibration.info
    assert (info.samples, info.length, info.n_tokens, info.seed, info.source) == (4, 10, 40, 5, "random")
    assert (info.model_fingerprint, info.token_sha256) == (checkpoint.fingerprint, windows.sha256)
    assert (info.dtype, info.batch_tokens, info.device_kind) == ("float32", 20, "cpu")
    assert calibration.recipe.report == {"unseen": []}
    # three layers of two batches, and H costs as much again as the layer's own run
    assert [m[:2] for m in messages] == [(done, 12) for done in (0, 2, 4, 6, 8, 10, 12)]
    assert messages[3][2] == "layer 2 of 3, batch 1 of 2"
    assert sorted(p.name for p in path.iterdir()) == sorted(
        [MANIFEST, TOKENS, *(layer_path(path, i).name for i in range(3))]
    )
    with safe_open(layer_path(path, 0), "pt") as file:  # an ordinary safetensors file
        assert file.get_slice("down").get_shape() == [84 * 85 // 2]
    with safe_open(path / TOKENS, "np") as file:
        assert (file.get_tensor("ids") == windows.ids).all()


def test_bfloat16_is_close_and_says_so(
    qwen2: Path, random_windows: Callable[..., TokenWindows], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(qwen2)
    exact, rounded = (
        calibrate_model(checkpoint, random_windows(4, 10), tmp_path / dtype, source="x", seed=0, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    assert rounded.info.dtype == "bfloat16"
    for key in (MatrixKey(0, "q"), MatrixKey(2, "down")):
        a, b = exact.hessian(key), rounded.hessian(key)
        assert not torch.equal(a, b)
        assert float((a - b).norm() / a.norm()) < 0.05


def test_ids_of_another_tokenizer(qwen2: Path, random_windows: Callable[..., TokenWindows], tmp_path: Path) -> None:
    windows = random_windows(2, 5)
    with pytest.raises(CalibrationError, match="vocabulary of 320"):
        calibrate_model(
            open_checkpoint(qwen2), replace(windows, ids=windows.ids + 300), tmp_path / "h", source="x", seed=0
        )


def test_folders_that_do_not_fit(
    tiny_checkpoints: dict[str, Path], qwen2_calibration: Calibration, shared_data: Path, tmp_path: Path
) -> None:
    whole = qwen2_calibration.path
    checkpoint = open_checkpoint(tiny_checkpoints["qwen2"])
    with pytest.raises(CalibrationError, match="other weights"):
        Calibration.open(whole, open_checkpoint(tiny_checkpoints["llama"]))
    with pytest.raises(CalibrationError, match="cannot read"):
        Calibration.open(tmp_path / "none", checkpoint)
    with pytest.raises(CalibrationError, match="run calibrate again"):  # the form of old: one file
        Calibration.open(tiny_checkpoints["qwen2"] / "model.safetensors", checkpoint)
    with pytest.raises(CalibrationError, match=r"no H for matrix 9\.q"):
        qwen2_calibration.hessian(MatrixKey(9, "q"))
    with pytest.raises(CalibrationError, match=r"no H for matrix 1\.down\.4"):
        qwen2_calibration.hessian(MatrixKey(1, "down", 4))


def test_damaged_folders(tiny_checkpoints: dict[str, Path], qwen2_calibration: Calibration, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints["qwen2"])
    path = Path(shutil.copytree(qwen2_calibration.path, tmp_path / "h"))
    layer, manifest = layer_path(path, 1), path / MANIFEST
    whole, described = layer.read_bytes(), manifest.read_text()

    def refused(match: str) -> None:
        with pytest.raises(CalibrationError, match=match):
            Calibration.open(path, checkpoint)
        layer.write_bytes(whole)
        manifest.write_text(described)

    layer.write_bytes(whole[:-8])
    refused("truncated")
    layer.unlink()
    refused("cannot read")
    layer.write_bytes(layer_path(path, 2).read_bytes())
    refused("holds layer 2, not 1")
    layer.write_bytes(whole.replace(b"float32", b"float31"))
    refused("differs in dtype")
    manifest.write_text("{")
    refused("cannot read")
    manifest.write_text(described.replace('"version": "2"', '"version": "1"'))
    refused("no calibration of version 2")
    manifest.write_text(described.replace('"samples": 12', '"samples": "12"'))
    refused("damaged: samples")
    manifest.write_text(described.replace('"seed"', '"sow"'))
    refused("damaged")
    manifest.write_text(json.dumps(json.loads(described) | {"keeps": "tokens"}))
    refused("keeps its tokens alone")
    layer.write_bytes(whole[:-4] + b"\xff\xff\xff\xff")  # NaN in the last entry of the last input
    with pytest.raises(NonFiniteValues, match="NaN or infinity"):
        Calibration.open(path, checkpoint).hessian(MatrixKey(1, "down"))


@given(n=st.integers(1, 40), panel=st.integers(1, 50))
@settings(max_examples=20, deadline=None)
def test_half_round_trip(n: int, panel: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    x = torch.randn(n, n, generator=torch.Generator().manual_seed(n))
    symmetric = x + x.T
    path = tmp_path_factory.mktemp("half") / "h"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second_moment, "PANEL_ROWS", panel)
        with SafetensorsWriter(path, [Entry("h", "F32", (half_size(n),))], {}) as writer:
            writer.write_pieces("h", 4 * half_size(n), half_pieces(square_panels(symmetric)))
        assert torch.equal(read_square(read_header(path).tensors["h"], n), symmetric)


def test_a_wide_moment_is_summed_in_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    x_TI = torch.randn(50, 23, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(second_moment, "PANEL_ROWS", 5)
    moment = SecondMoment(23, torch.device("cpu"))
    for chunk in x_TI.split(7):
        moment.add(chunk[None])
    mean = moment.mean()
    assert torch.equal(mean, mean.T)
    torch.testing.assert_close(mean, (x_TI.double().T @ x_TI.double() / 50).float(), atol=1e-6, rtol=1e-5)


def test_a_moment_of_nothing_is_the_identity() -> None:
    moment = SecondMoment(7, torch.device("cpu"))
    moment.add(torch.empty(0, 7))
    assert not moment.seen
    assert torch.equal(moment.mean(), torch.eye(7))
