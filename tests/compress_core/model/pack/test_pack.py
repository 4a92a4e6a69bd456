"""A whole model packed: bytes exact to the byte, read back bit for bit, evaluated; never half there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress_core.calibrate.calibration import Calibration
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights, read_tensor
from compress_core.config import CompressionConfig
from compress_core.decompose import compress_matrix
from compress_core.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    NonFiniteValues,
    PackedFormatError,
    RankTooLarge,
)
from compress_core.evaluate.perplexity import evaluate_perplexity
from compress_core.matrix import MatrixKey
from compress_core.measurement import MatrixMeasurement
from compress_core.pack.layout import FILE_NAME, fixed_bytes
from compress_core.pack.reader import PackedModel
from compress_core.pack.report import expected_bytes
from compress_core.pack.work import work_folder
from compress_core.pack.writer import write_packed_model
from compress_core.text.tokens import TokenWindows

#: one of every kind, so that every part and dtype occurs
MENU = (
    CompressionConfig(b_q=2, rank=4, factor_bits=4, codebook="e8", iterations=1),
    CompressionConfig(b_q=3, rank=3, factor_bits=(16, 8), codebook="scalar", iterations=1),
    CompressionConfig(b_q=4, codebook="rtn"),
    CompressionConfig(b_q=4, codebook="e8", seed=7, iterations=1),
    CompressionConfig(b_q=8, codebook="scalar", iterations=1),
    CompressionConfig(b_q=3, codebook="gptq"),
    CompressionConfig(b_q=2, rank=17, codebook="trellis", states=256, iterations=1),
    CompressionConfig(b_q=4, codebook="trellis", states=1024, iterations=1),
)
RTN8 = CompressionConfig(b_q=8, codebook="rtn")


def _items(path: Path) -> dict[MatrixKey, CompressionConfig]:
    return {spec.key: MENU[n % len(MENU)] for n, spec in enumerate(open_checkpoint(path).matrices())}


def _rtn(path: Path) -> dict[MatrixKey, CompressionConfig]:
    return {spec.key: RTN8 for spec in open_checkpoint(path).matrices()}


#: in one process, which packs the model once
pytestmark = pytest.mark.xdist_group("pack")


@pytest.fixture(scope="module")
def packed_dir(
    tiny_checkpoints: dict[str, Path], qwen2_calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("packed") / "mixed"
    path = tiny_checkpoints["qwen2"]
    measured: dict[MatrixKey, MatrixMeasurement] = {}
    checkpoint = open_checkpoint(path)
    report = write_packed_model(checkpoint, qwen2_calibration, _items(path), out, on_measurement=measured.__setitem__)
    assert report.exact
    assert report.actual_bytes == (out / FILE_NAME).stat().st_size
    assert report.actual_bytes == fixed_bytes(checkpoint) + sum(m.nbytes for m in measured.values())
    assert report.actual_bytes == expected_bytes(checkpoint, _items(path))
    assert list(measured) == [spec.key for spec in checkpoint.matrices()]
    assert all(0 <= m.calibration_weighted_error < 0.6 for m in measured.values())
    return out


def test_weights_come_back_bit_for_bit(packed_dir: Path, qwen2: Path, qwen2_calibration: Calibration) -> None:
    checkpoint = open_checkpoint(qwen2)
    packed = PackedModel.open(packed_dir)
    items = _items(qwen2)
    assert packed.keys() == tuple(items)
    for spec in checkpoint.matrices():
        weight = read_tensor(checkpoint.tensors[spec.tensor_name])
        expected = compress_matrix(weight, qwen2_calibration.hessian(spec.key), items[spec.key])
        assert packed.config(spec.key) == items[spec.key]
        assert torch.equal(packed.weight(spec.key), expected.dequantize())
        assert packed.matrix(spec.key).nbytes == expected.nbytes
    for tensor in checkpoint.other_tensors:
        assert torch.equal(packed.tensor(tensor.name), read_tensor(tensor))


def test_it_is_an_ordinary_aligned_safetensors_file(packed_dir: Path) -> None:
    with safe_open(packed_dir / FILE_NAME, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        assert file.metadata()["format"] == "pt"
    assert tensors["model.layers.0.self_attn.q_proj.packed"].dtype == torch.uint8
    header = PackedModel.open(packed_dir)._tensors
    assert all(header[name].begin % tensor.element_size() == 0 for name, tensor in tensors.items())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.uint8, torch.float32}


def test_companions_come_along_and_nothing_else(packed_dir: Path, qwen2: Path) -> None:
    names = {path.name for path in packed_dir.iterdir()}
    assert {"config.json", "tokenizer.json", FILE_NAME} <= names
    assert names <= {path.name for path in qwen2.iterdir()}
    assert [path.name for path in packed_dir.parent.iterdir()] == [packed_dir.name]


def test_the_config_says_that_the_weights_are_packed(packed_dir: Path, qwen2: Path) -> None:
    config = json.loads((packed_dir / "config.json").read_text())
    assert config.pop("quantization_config") == {"quant_method": "bitbudget", "version": "2"}
    assert config.pop("dequantize") is False
    assert config == json.loads((qwen2 / "config.json").read_text())
    with pytest.raises(CheckpointError, match="already quantised"):
        open_checkpoint(packed_dir)


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral"])
def test_it_evaluates_as_the_dense_model_with_these_weights(
    tiny_checkpoints: dict[str, Path], random_windows: Callable[..., TokenWindows], tmp_path: Path, family: str
) -> None:
    path = tiny_checkpoints[family]
    checkpoint = open_checkpoint(path)
    items = {spec.key: CompressionConfig(b_q=3, codebook="rtn") for spec in checkpoint.matrices()}
    write_packed_model(checkpoint, None, items, tmp_path / "packed")
    packed = PackedModel.open(tmp_path / "packed")
    windows = random_windows(3, 14)
    losses = evaluate_perplexity(packed, windows)
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        for spec in checkpoint.matrices():
            whole.get_parameter(spec.tensor_name).copy_(packed.weight(spec.key))
        expected = [float(whole(row[None], labels=row[None]).loss) * 13 for row in torch.from_numpy(windows.ids).long()]
    np.testing.assert_allclose(losses.nll, expected, rtol=1e-5)
    assert losses.perplexity != pytest.approx(evaluate_perplexity(DenseWeights(checkpoint), windows).perplexity)


def test_same_items_same_bytes(qwen2: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_packed_model(open_checkpoint(qwen2), None, _items(qwen2), tmp_path / name)
    assert (tmp_path / "a" / FILE_NAME).read_bytes() == (tmp_path / "b" / FILE_NAME).read_bytes()


def test_interruption_leaves_nothing(qwen2: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, message: str) -> None:
        if done == 9:
            raise Interrupted("cancelled")

    with pytest.raises(Interrupted):
        write_packed_model(open_checkpoint(qwen2), None, _rtn(qwen2), tmp_path / "out", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_replaced_only_on_request(qwen2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    checkpoint = open_checkpoint(qwen2)
    with pytest.raises(ConfigError, match="exists"):
        write_packed_model(checkpoint, None, _rtn(qwen2), out)
    write_packed_model(checkpoint, None, _rtn(qwen2), str(out), overwrite=True)
    assert not (out / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert PackedModel.open(out).nbytes == expected_bytes(checkpoint, _rtn(qwen2))


def test_original_weights_are_never_replaced(broken_copy: Path) -> None:
    checkpoint, before = open_checkpoint(broken_copy), sorted(broken_copy.iterdir())
    with pytest.raises(ConfigError, match="holds the original weights"):
        write_packed_model(checkpoint, None, _rtn(broken_copy), broken_copy / ".." / broken_copy.name, overwrite=True)
    assert sorted(broken_copy.iterdir()) == before


def test_items_must_be_complete_and_possible(qwen2: Path, tmp_path: Path) -> None:
    checkpoint, items = open_checkpoint(qwen2), _rtn(qwen2)
    key = MatrixKey(1, "down")
    with pytest.raises(ConfigError, match=r"no config for matrix 1\.down"):
        write_packed_model(checkpoint, None, {k: c for k, c in items.items() if k != key}, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"matrix 9\.q"):
        write_packed_model(checkpoint, None, {**items, MatrixKey(9, "q"): RTN8}, tmp_path / "out")
    with pytest.raises(RankTooLarge, match="49"):
        write_packed_model(checkpoint, None, {**items, key: CompressionConfig(b_q=2, rank=49)}, tmp_path / "out")


def test_nan_weights_are_named(broken_copy: Path, tmp_path: Path) -> None:
    path = broken_copy / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.2.self_attn.o_proj.weight"][0, 0] = torch.inf
    save_file(tensors, path)
    with pytest.raises(NonFiniteValues, match=r"layers\.2\.self_attn\.o_proj"):
        write_packed_model(open_checkpoint(broken_copy), None, _rtn(broken_copy), tmp_path / "out")


def test_damaged_packed_models(packed_dir: Path, qwen2: Path, tmp_path: Path) -> None:
    with pytest.raises(PackedFormatError, match="no packed model"):
        PackedModel.open(qwen2)
    with pytest.raises(PackedFormatError, match=r"holds no model\.safetensors and no model\.safetensors\.index\.json"):
        PackedModel.open(tmp_path)
    data = (packed_dir / FILE_NAME).read_bytes()
    path = tmp_path / FILE_NAME
    path.write_bytes(data[:-1])
    with pytest.raises(PackedFormatError, match="truncated"):
        PackedModel.open(tmp_path)
    n_header = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n_header])
    sound = json.loads(header["__metadata__"]["bitbudget"])
    q, down = "model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"
    for change, message in [
        ({"version": "9"}, "format version '9', this release reads version '2'"),
        ({"version": 2}, "format version 2, this release reads version '2'"),
        ({"fingerprint": None, "configs": []}, "damaged"),
        ({"configs": [{"b_q": 9}]}, "damaged"),
        ({"matrices": {**sound["matrices"], "model.layers.0.mlp.what_norm": [0, 8, 8]}}, "holds no tensor"),
        ({"matrices": {**sound["matrices"], "model.layers.7.self_attn.q_proj": [0, 8, 8]}}, "holds no tensor"),
        ({"matrices": {**sound["matrices"], q: [0, 48, 40]}}, rf"{q}.packed must be U8 of shape \[\d+\]"),
        ({"matrices": {**sound["matrices"], q: [0, 3, 48]}}, "damaged.*rank 4 exceeds"),
        ({"matrices": {**sound["matrices"], down: [99, 48, 84]}}, "damaged"),
        ({"matrices": 3}, "damaged"),
    ]:
        changed = {**header, "__metadata__": {"format": "pt", "bitbudget": json.dumps(sound | change)}}
        raw = json.dumps(changed).encode()
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + n_header :])
        with pytest.raises(PackedFormatError, match=message):
            PackedModel.open(tmp_path)
    with pytest.raises(PackedFormatError, match=r"no matrix 9\.q"):
        PackedModel.open(packed_dir).weight(MatrixKey(9, "q"))
    with pytest.raises(PackedFormatError, match=r"no tensor model\.what\.weight"):
        PackedModel.open(packed_dir).tensor("model.what.weight")


def test_a_directory_of_format_version_1_is_named(tmp_path: Path) -> None:
    (tmp_path / "packed.safetensors").touch()
    with pytest.raises(PackedFormatError, match="format version 1: compress the model again"):
        PackedModel.open(tmp_path)


def test_a_real_model(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "models" / "stories260K"
    checkpoint = open_checkpoint(path)
    items = {
        spec.key: CompressionConfig(b_q=2 + n % 3, rank=n % 5, codebook="scalar", iterations=1)
        for n, spec in enumerate(checkpoint.matrices())
    }
    report = write_packed_model(checkpoint, None, items, tmp_path / "packed")
    assert report.exact
    assert PackedModel.open(tmp_path / "packed").weight(MatrixKey(4, "down")).shape == (64, 172)


def test_a_model_that_cannot_be_put_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"before")
    with pytest.raises(FileNotFoundError), work_folder(tmp_path / "out", None, "") as folder:
        folder.rmdir()  # whatever keeps it from being moved
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"before"
