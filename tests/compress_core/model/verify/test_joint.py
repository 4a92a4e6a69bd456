"""Many allocations in one pass: each as its packed model evaluates, also where the pass was killed in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import compress_core.verify.cells as cells_module
import compress_core.verify.scoring as scoring_module
from compress_core.calibrate.calibration import Calibration
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights, read_matrix
from compress_core.config import CompressionConfig
from compress_core.decompose import compress_matrix
from compress_core.errors import CalibrationError, ConfigError, Interrupted, NonFiniteValues, RankTooLarge
from compress_core.evaluate.kl import evaluate_kl
from compress_core.evaluate.perplexity import evaluate_perplexity
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.pack.reader import PackedModel
from compress_core.pack.writer import write_packed_model
from compress_core.text.tokens import TokenWindows
from compress_core.verify.joint import JointLosses, joint_losses

Items = dict[MatrixKey, CompressionConfig]

RTN4 = CompressionConfig(b_q=4, codebook="rtn")
MENU = (
    CompressionConfig(b_q=2, codebook="scalar"),
    CompressionConfig(b_q=2, rank=4, factor_bits=(16, 8), codebook="scalar", iterations=1),
    CompressionConfig(b_q=3, codebook="e8", seed=7),
    CompressionConfig(b_q=3, codebook="gptq"),
    RTN4,
    CompressionConfig(b_q=16, codebook="raw"),
)


#: what takes no time
QUICK = (RTN4, CompressionConfig(b_q=2, codebook="rtn"), CompressionConfig(b_q=3, codebook="gptq"), MENU[-1])


def _mixed(path: Path, shift: int, menu: tuple[CompressionConfig, ...] = QUICK) -> Items:
    matrices = open_checkpoint(path).matrices()
    return {spec.key: menu[(n * (1 + shift) + shift) % len(menu)] for n, spec in enumerate(matrices)}


def _uniform(path: Path, config: CompressionConfig) -> Items:
    return {spec.key: config for spec in open_checkpoint(path).matrices()}


@pytest.fixture(scope="module")
def windows(random_windows: Callable[..., TokenWindows]) -> TokenWindows:
    return random_windows(5, 14)


def _assert_same(found: JointLosses, expected: JointLosses) -> None:
    np.testing.assert_array_equal(found.kl_AN, expected.kl_AN)
    np.testing.assert_array_equal(found.nll_AN, expected.nll_AN)
    np.testing.assert_array_equal(found.original.nll, expected.original.nll)


def _check_packed(
    path: Path,
    calibration: Calibration | None,
    windows: TokenWindows,
    items: Items,
    out: Path,
    found: JointLosses,
    at: int,
) -> None:
    """The allocation's losses are those of the packed model."""
    write_packed_model(open_checkpoint(path), calibration, items, out)
    packed = PackedModel.open(out)
    losses = evaluate_perplexity(packed, windows, batch_tokens=28)
    np.testing.assert_allclose(found.losses[at].nll, losses.nll, rtol=1e-6)
    kl = evaluate_kl(DenseWeights(open_checkpoint(path)), packed, windows, batch_tokens=28)
    np.testing.assert_allclose(found.kl_AN[at], kl, rtol=1e-4)


def test_each_is_its_packed_model(
    qwen2: Path, qwen2_calibration: Calibration, windows: TokenWindows, tmp_path: Path
) -> None:
    allocations = [_mixed(qwen2, 0, MENU), _mixed(qwen2, 1), _uniform(qwen2, RTN4)]
    found = joint_losses(open_checkpoint(qwen2), qwen2_calibration, windows, allocations, batch_tokens=28)
    for at, items in enumerate(allocations):
        _check_packed(qwen2, qwen2_calibration, windows, items, tmp_path / str(at), found, at)
    original = evaluate_perplexity(DenseWeights(open_checkpoint(qwen2)), windows, batch_tokens=28)
    np.testing.assert_allclose(found.original.nll, original.nll, rtol=1e-6)
    assert found.original.token_sha256 == windows.sha256
    assert found.kl_A.shape == (3,)
    assert len({round(kl, 9) for kl in found.kl_A}) == 3


def test_fused_matrices_and_experts(unusual_family: Path, windows: TokenWindows, tmp_path: Path) -> None:
    menu = (CompressionConfig(b_q=2, codebook="scalar"), RTN4)
    specs = open_checkpoint(unusual_family).matrices()
    items = {spec.key: menu[n % 2] for n, spec in enumerate(specs)}
    found = joint_losses(open_checkpoint(unusual_family), None, windows, [items], batch_tokens=28)
    _check_packed(unusual_family, None, windows, items, tmp_path / "packed", found, 0)


def test_matrices_without_a_config_stay_as_they_are(qwen2: Path, windows: TokenWindows) -> None:
    checkpoint = open_checkpoint(qwen2)
    one = checkpoint.matrices()[9]
    found = joint_losses(checkpoint, None, windows, [{}, {one.key: MENU[0]}, {}])
    assert not found.kl_AN[0].any()
    assert not found.kl_AN[2].any()
    assert (found.kl_AN[1] > 0).all()
    np.testing.assert_array_equal(found.losses[0].nll, found.original.nll)


def test_each_distinct_cell_is_decomposed_once(
    qwen2: Path, windows: TokenWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    decomposed: list[tuple[str, str]] = []
    compress = cells_module.compress_cells

    def watched(checkpoint: object, spec: MatrixSpec, configs: tuple[CompressionConfig, ...], *rest: object) -> object:
        decomposed.extend((str(spec.key), config.config_hash) for config in configs)
        return compress(checkpoint, spec, configs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("compress_core.verify.joint.compress_cells", watched)
    allocations = [_uniform(qwen2, QUICK[1]), _uniform(qwen2, RTN4), _uniform(qwen2, QUICK[1])]
    changed = dict(allocations[0])
    changed[MatrixKey(2, "down")] = RTN4
    found = joint_losses(open_checkpoint(qwen2), None, windows, [*allocations, changed])
    assert len(decomposed) == len(set(decomposed)) == 2 * 21
    np.testing.assert_array_equal(found.kl_AN[0], found.kl_AN[2])
    assert (found.kl_AN[0] != found.kl_AN[3]).any()


def test_weights_from_the_caller_are_not_decomposed(qwen2: Path, windows: TokenWindows) -> None:
    checkpoint = open_checkpoint(qwen2)
    allocations = [_mixed(qwen2, 0), _mixed(qwen2, 2)]
    asked = []

    def weights_of(spec: MatrixSpec, config: CompressionConfig) -> torch.Tensor:
        asked.append((spec.key, config.config_hash))
        return compress_matrix(read_matrix(checkpoint, spec), None, config).dequantize()

    found = joint_losses(checkpoint, None, windows, allocations, weights_of=weights_of)
    _assert_same(found, joint_losses(checkpoint, None, windows, allocations))
    assert len(asked) >= 21


def test_mapped_files_and_small_pieces_change_nothing(
    qwen2: Path, windows: TokenWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, allocations = open_checkpoint(qwen2), [_mixed(qwen2, 0), _mixed(qwen2, 1)]
    expected = joint_losses(checkpoint, None, windows, allocations)
    _assert_same(
        joint_losses(checkpoint, None, windows, allocations, ram_bytes=0, scratch=tmp_path / "states"), expected
    )
    assert list((tmp_path / "states").iterdir()) == []
    monkeypatch.setitem(scoring_module._LOGITS_AT_ONCE, "cpu", 9 * 320)  # less than one window
    found = joint_losses(checkpoint, None, windows, allocations)
    np.testing.assert_allclose(found.nll_AN, expected.nll_AN, rtol=1e-6)
    np.testing.assert_allclose(found.kl_AN, expected.kl_AN, rtol=1e-5)


def test_a_killed_pass_goes_on_after_the_last_layer(
    qwen2: Path, qwen2_calibration: Calibration, windows: TokenWindows, tmp_path: Path
) -> None:
    checkpoint, allocations = open_checkpoint(qwen2), [_mixed(qwen2, 0), _mixed(qwen2, 1)]
    expected = joint_losses(checkpoint, qwen2_calibration, windows, allocations)
    told: list[tuple[int, str]] = []

    def stop(done: int, total: int, message: str) -> None:
        assert total == 1000
        assert done <= total
        told.append((done, message))
        if message.startswith("decomposed 2."):
            raise Interrupted("stopped")

    resumed: list[tuple[int, int]] = []

    def go(allocations: list[Items], progress: Callable[[int, int, str], None]) -> JointLosses:
        return joint_losses(
            checkpoint,
            qwen2_calibration,
            windows,
            allocations,
            ram_bytes=0,
            scratch=tmp_path / "states",
            on_resume=lambda done, total: resumed.append((done, total)),
            progress=progress,
        )

    with pytest.raises(Interrupted):
        go(allocations, stop)
    assert any("decomposed 0." in message for _, message in told)
    first, told = told, []
    found = go(allocations, lambda done, total, message: told.append((done, message)))
    _assert_same(found, expected)
    ((resumed_at, total),) = resumed
    assert 400 < resumed_at < min(done for done, _ in told)
    assert total == 1000
    assert not any(message.startswith(("decomposed 0.", "decomposed 1.")) for _, message in told)
    assert [done for done, _ in first] == sorted(done for done, _ in first)
    assert told[-1][0] == 1000
    # what another computation left is of no use
    with pytest.raises(Interrupted):
        go(allocations, stop)
    told.clear()
    go(allocations[:1], lambda done, total, message: told.append((done, message)))
    assert any("decomposed 0." in message for _, message in told)


def test_progress_counts_each_piece_once(qwen2: Path, windows: TokenWindows) -> None:
    told: list[int] = []
    items = {MatrixKey(0, "k"): MENU[1], MatrixKey(1, "o"): MENU[1]}  # told of inside, too
    joint_losses(open_checkpoint(qwen2), None, windows, [items], progress=lambda done, *_: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1000
    assert max(told[:-1]) < 1000


def test_what_needs_no_h_asks_for_none(qwen2: Path, windows: TokenWindows, qwen2_calibration: Calibration) -> None:
    class Watched:
        info = qwen2_calibration.info

        def hessian(self, key: MatrixKey) -> torch.Tensor:
            raise AssertionError(f"H of {key} was asked for")

        def close(self) -> None: ...

    joint_losses(open_checkpoint(qwen2), Watched(), windows, [_uniform(qwen2, RTN4)])


def test_what_is_wrong_is_named(qwen2: Path, windows: TokenWindows) -> None:
    checkpoint = open_checkpoint(qwen2)
    uniform = _uniform(qwen2, RTN4)
    with pytest.raises(ConfigError, match="no allocation"):
        joint_losses(checkpoint, None, windows, [])
    with pytest.raises(ConfigError, match="2 allocations have 1 names"):
        joint_losses(checkpoint, None, windows, [uniform, uniform], names=["optimal"])
    with pytest.raises(ConfigError, match=r"matrix 9\.q, which"):
        joint_losses(checkpoint, None, windows, [{MatrixKey(9, "q"): RTN4}])
    with pytest.raises(RankTooLarge):
        joint_losses(checkpoint, None, windows, [{MatrixKey(1, "k"): CompressionConfig(b_q=2, rank=40)}])
    with pytest.raises(CalibrationError, match="vocabulary"):
        joint_losses(checkpoint, None, TokenWindows(windows.ids + 320, windows.n_bytes), [uniform])


def test_what_is_not_finite_is_named(qwen2: Path, windows: TokenWindows) -> None:
    checkpoint = open_checkpoint(qwen2)

    def weights_of(value: float) -> Callable[[MatrixSpec, CompressionConfig], torch.Tensor]:
        return lambda spec, config: torch.full((spec.out_features, spec.in_features), value)

    items = {MatrixKey(1, "up"): RTN4}
    with pytest.raises(NonFiniteValues, match=r"matrix 1\.up at rtn 4b"):
        joint_losses(checkpoint, None, windows, [items], weights_of=weights_of(np.nan))
    with pytest.raises(NonFiniteValues, match="the hidden states of manual became NaN or infinite in layer 1"):
        joint_losses(checkpoint, None, windows, [{}, items], names=["x", "manual"], weights_of=weights_of(3e38))
