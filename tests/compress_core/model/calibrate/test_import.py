"""An archive of second moments becomes a calibration, or the error says what is wrong with it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_core.calibrate.archive import Archive
from compress_core.calibrate.archive_names import match_arrays, parse_name
from compress_core.calibrate.calibration import Calibration
from compress_core.calibrate.imported import import_calibration
from compress_core.calibrate.streamed import StreamedCalibration
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.errors import CalibrationError, Interrupted
from compress_core.matrix import MatrixKey

Arrays = dict[str, Any]

NAMES = {
    "3.qkv": (3, "qkv"),
    "3.down": (3, "down"),
    "layer3_down_proj": (3, "down"),
    "layer_3/gate_up": (3, "gate_up"),
    "model.layers.3.self_attn.q_proj": (3, "qkv"),
    "model.layers.12.mlp.up_proj.weight": (12, "gate_up"),
    "model.layers.3.self_attn.qkv_proj.input": (3, "qkv"),
    "transformer.h.0.attn.o_proj": (0, "o"),
    "L3.W1": (3, "gate_up"),
    "layers.3.mlp.experts.7.down_proj": (3, "down.7"),
    "layers.3.mlp.shared_expert.gate_proj": (3, "gate_up"),
    "expert_7.layer_3.up": (3, "gate_up.7"),
    "hessian:block2:o": (2, "o"),
    "layers.3.attention.wv": (3, "qkv"),
    "3.attn.out": (3, "o"),
    "3.wo": (3, "o"),
    "l3.w2": (3, "down"),
    "3.7.gate": (3, "gate_up.7"),
    "n_samples": None,
    "3.embedding": None,
    "3": None,
    "down": None,
    "3.q.down": None,
    "3.4.5.q": None,
    "9" * 5000 + ".q": None,
    "layer3_lm_head": None,
}


@pytest.fixture
def checkpoint(qwen2: Path) -> Checkpoint:
    return open_checkpoint(qwen2)


@pytest.fixture
def arrays(checkpoint: Checkpoint, qwen2_calibration: Calibration) -> Arrays:
    """What another tool would have measured of the tiny Qwen2, under the names of its modules."""
    return {spec.module_name: qwen2_calibration.hessian(spec.key).numpy() for spec in checkpoint.matrices()}


@pytest.fixture
def archive(tmp_path: Path) -> Callable[[Arrays], Archive]:
    def make(arrays: Arrays) -> Archive:
        np.savez(tmp_path / "h.npz", **arrays)
        return Archive.open(tmp_path / "h.npz")

    return make


@pytest.mark.parametrize(("name", "key"), NAMES.items(), ids=NAMES)
def test_names(name: str, key: tuple[int, str] | None) -> None:
    assert parse_name(name) == key


@given(st.text(max_size=40))
@settings(max_examples=40, deadline=None)
def test_any_name_is_understood_or_not(name: str) -> None:
    key = parse_name(name)
    assert key is None or key[1].split(".")[0] in ("qkv", "o", "gate_up", "down")


def test_an_archive_of_all_inputs_is_the_calibration(
    checkpoint: Checkpoint, qwen2_calibration: Calibration, arrays: Arrays, archive: Any, tmp_path: Path
) -> None:
    given_arrays = arrays | {"n_samples": np.array(12), "model.layers.0.input_layernorm": np.zeros(48)}
    made = import_calibration(checkpoint, archive(given_arrays), tmp_path / "h")
    for spec in checkpoint.matrices():
        assert torch.equal(made.hessian(spec.key), qwen2_calibration.hessian(spec.key))
    report = made.recipe.report["import"]
    assert len(report["found"]) == 12
    assert (report["diagonal_only"], report["missing"]) == ([], [])
    assert report["unused"] == ["n_samples", "model.layers.0.input_layernorm"]
    assert made.info.n_tokens == 0
    with pytest.raises(CalibrationError, match="no tokens to compute H from"):
        StreamedCalibration.open(tmp_path / "h", checkpoint, tmp_path / "s")
    with pytest.raises(CalibrationError, match="another calibration"):
        import_calibration(checkpoint, archive(arrays), tmp_path / "h")


def test_an_interrupted_import_goes_on(checkpoint: Checkpoint, arrays: Arrays, archive: Any, tmp_path: Path) -> None:
    def stop(done: int, total: int, message: str) -> None:
        if done == 2:
            raise Interrupted("cancelled")

    source = archive(arrays)
    with pytest.raises(Interrupted):
        import_calibration(checkpoint, source, tmp_path / "a", progress=stop)
    for name in ("a", "b"):
        import_calibration(checkpoint, source, tmp_path / name)
    assert [(p.name, p.read_bytes()) for p in sorted((tmp_path / "a").iterdir())] == [
        (p.name, p.read_bytes()) for p in sorted((tmp_path / "b").iterdir())
    ]


def test_diagonals_and_what_is_missing(
    checkpoint: Checkpoint, qwen2_calibration: Calibration, arrays: Arrays, archive: Any, tmp_path: Path
) -> None:
    diagonal = arrays["model.layers.1.mlp.down_proj"].diagonal().astype(np.float64)
    given_arrays = {"layer1_down": diagonal, "0.o": arrays["model.layers.0.self_attn.o_proj"].astype(np.float64)}
    source = archive(given_arrays)
    with pytest.raises(CalibrationError, match=r"no statistics for 10 inputs of the model: 0\.qkv, .*npz_fill"):
        import_calibration(checkpoint, source, tmp_path / "h")
    made = import_calibration(checkpoint, source, tmp_path / "h", fill="identity")
    report = made.recipe.report["import"]
    assert (report["found"], report["diagonal_only"], len(report["missing"])) == (["0.o", "1.down"], ["1.down"], 10)
    assert torch.equal(made.hessian(MatrixKey(1, "down")), torch.from_numpy(diagonal).float().diag())
    assert torch.equal(made.hessian(MatrixKey(0, "o")), qwen2_calibration.hessian(MatrixKey(0, "o")))
    filled = made.hessian(MatrixKey(2, "gate"))
    expected = (diagonal.mean() + given_arrays["0.o"].diagonal().mean()) / 2
    torch.testing.assert_close(filled, torch.eye(48) * expected, check_dtype=False)


def test_two_arrays_of_one_input_must_agree(
    checkpoint: Checkpoint, arrays: Arrays, archive: Any, tmp_path: Path
) -> None:
    name = "model.layers.1.self_attn.k_proj"
    with pytest.raises(CalibrationError, match=r"q_proj' and '.*k_proj' are of the same input but differ"):
        import_calibration(checkpoint, archive(arrays | {name: 2 * arrays[name]}), tmp_path / "h")
    with pytest.raises(CalibrationError, match=r"q_proj' and '1\.qkv' are of the same input but differ"):
        import_calibration(checkpoint, archive(arrays | {"1.qkv": arrays[name].diagonal() + 1}), tmp_path / "i")


def damaged(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {name: change(arrays[name])}


DOWN = "model.layers.1.mlp.down_proj"
DAMAGE = {
    "other shape": (
        damaged(DOWN, lambda a: a[:80, :80]),
        r"has shape \[80, 80\], but 1\.down of this model is 84 wide",
    ),
    "no square": (damaged(DOWN, lambda a: a[:, :3]), r"has shape \[84, 3\]"),
    "integers": (damaged(DOWN, lambda a: a.astype(np.int64)), "holds int64"),
    "complex": (damaged(DOWN, lambda a: a.astype(np.complex64)), "holds complex64"),
    "NaN": (damaged(DOWN, lambda a: a * np.nan), "holds NaN"),
    "too large": (
        damaged(DOWN, lambda a: a.astype(np.float64) * 1e300),
        "or values that float32 cannot hold",
    ),
    "larger than the diagonal allows": (
        damaged(DOWN, lambda a: a - 0.5 * np.diag(np.diag(a))),
        "larger than the diagonal allows",
    ),
    "not symmetric": (damaged(DOWN, lambda a: a + np.triu(np.full_like(a, a.max()), 1)), "is not symmetric"),
    "negative": (damaged(DOWN, lambda a: -a), "on its diagonal: a mean of squares"),
    "zero": (damaged(DOWN, lambda a: 0 * a), "nothing but zeros"),
    "objects": (damaged(DOWN, lambda a: a.astype(object)), "holds Python objects"),
}


@pytest.mark.parametrize(("change", "match"), DAMAGE.values(), ids=DAMAGE)
def test_wrong_arrays(
    checkpoint: Checkpoint, arrays: Arrays, archive: Any, tmp_path: Path, change: Any, match: str
) -> None:
    with pytest.raises(CalibrationError, match=match):
        import_calibration(checkpoint, archive(change(arrays)), tmp_path / "h")
    assert not (tmp_path / "h" / "calibration.json").exists()


def test_another_model(shared_data: Path, arrays: Arrays, archive: Any) -> None:
    other = open_checkpoint(shared_data / "models" / "stories260K")
    with pytest.raises(CalibrationError, match=r"has shape \[48, 48\], but 0\.qkv of this model is 64 wide"):
        match_arrays(archive(arrays).arrays, other.matrices())
    with pytest.raises(CalibrationError, match=r"none of the 2 arrays names an input of this model \(99\.q, mean\)"):
        match_arrays(archive({"99.q": np.eye(48), "mean": np.ones(3)}).arrays, other.matrices())


class Bomb:
    """Whoever unpickles it is found out."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("an array was unpickled",))


def test_files_that_are_no_archives(tmp_path: Path, arrays: Arrays) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(CalibrationError, match="no readable"):
        Archive.open(path)
    path.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(CalibrationError, match="no readable"):
        Archive.open(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CalibrationError, match="no readable"):
        Archive.open(path)
    np.savez(path, **{"0.q": np.array([Bomb()], dtype=object)})
    with pytest.raises(CalibrationError, match="Python objects"):
        Archive.open(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("0.q.txt", "1 2 3")
    with pytest.raises(CalibrationError, match="is no array"):
        Archive.open(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("0.q.npy", b"\x93NUMPY\x01\x00 torn")
    with pytest.raises(CalibrationError, match="no readable"):
        Archive.open(path)
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    Archive.open(path)
    damaged_bytes = bytearray(whole)
    begin = whole.index(b"down_proj.npy") + 200
    damaged_bytes[begin : begin + 400] = bytes(400)  # the data; headers and directory are sound
    path.write_bytes(damaged_bytes)
    name = next(name for name in arrays if name.endswith("down_proj"))
    with pytest.raises(CalibrationError, match="no readable"):
        Archive.open(path).read(name)


@pytest.mark.parametrize(
    "header", [b"(" * 100, b"'", b"{'descr': '<f4', 'shape': (48,48", b"-" * 9000 + b"1"], ids=["(", "quote", "{", "-"]
)
def test_headers_that_cannot_be_parsed(tmp_path: Path, header: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "h.npz", "w") as file:
        file.writestr("0.qkv.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(CalibrationError, match=r"header of array .0\.qkv. is damaged|is no readable \.npz archive"):
        Archive.open(tmp_path / "h.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_streams(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "h.npz", "w", method) as file, file.open("0.qkv.npy", "w") as stream:
        np.save(stream, np.random.default_rng(0).normal(size=(48, 48)).astype(np.float32))
    content = bytearray((tmp_path / "h.npz").read_bytes())
    content[60:4000] = bytes(3940)
    (tmp_path / "h.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"is no readable \.npz archive"):
        Archive.open(tmp_path / "h.npz").read("0.qkv")
