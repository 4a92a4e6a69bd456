"""Whole-model jobs prepare each distinct input of a layer once, and hold one at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compress_core import compress_matrix
from compress_core import shared_inputs as module
from compress_core.calibrate.calibration import Calibration
from compress_core.calibrate.inputs import INPUT_GROUPS, INPUT_OF
from compress_core.checkpoint import open_checkpoint
from compress_core.config import CompressionConfig
from compress_core.pack.writer import write_packed_model
from compress_core.sensitivity.fidelity import layer_fidelity
from compress_core.sensitivity.kl import kl_sensitivity
from compress_core.shared_inputs import SharedInputs
from compress_core.text.tokens import TokenWindows

ANCHORS = [CompressionConfig(b_q=b, codebook="scalar", seed=1) for b in (2, 4)]


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Weak references to the contexts that were prepared; all but the newest must be gone when a new one is made."""
    contexts: list[Any] = []
    prepare = module.prepare_input

    def watch(*args: Any) -> Any:
        gc.collect()
        assert [reference for reference in contexts if reference() is not None] == []
        context = prepare(*args)
        contexts.append(weakref.ref(context))
        return context

    monkeypatch.setattr(module, "prepare_input", watch)
    # a collection looks at what the test has made alone, and not at all that was imported
    gc.freeze()
    yield contexts
    gc.unfreeze()


def test_each_job_prepares_each_input_once(
    qwen2: Path,
    qwen2_calibration: Calibration,
    random_windows: Callable[..., TokenWindows],
    tmp_path: Path,
    prepared: list[Any],
) -> None:
    checkpoint, windows = open_checkpoint(qwen2), random_windows(2, 16)
    distinct = checkpoint.n_layers * len(INPUT_GROUPS)
    write_packed_model(
        checkpoint, qwen2_calibration, {spec.key: ANCHORS[0] for spec in checkpoint.matrices()}, tmp_path / "packed"
    )
    assert len(prepared) == distinct
    kl_sensitivity(checkpoint, qwen2_calibration, windows, ANCHORS)
    assert len(prepared) == 2 * distinct
    layer_fidelity(checkpoint, qwen2_calibration, windows, ANCHORS[0])
    assert len(prepared) == 3 * distinct


def test_one_input_at_a_time(qwen2: Path, qwen2_calibration: Calibration) -> None:
    checkpoint = open_checkpoint(qwen2)
    inputs = SharedInputs(qwen2_calibration, torch.device("cpu"))
    held = [inputs.of(spec) for spec in checkpoint.layer_matrices(1)]
    assert [spec.key.projection for spec in checkpoint.layer_matrices(1)] == list(INPUT_OF)
    assert held[0] is held[1] is held[2]
    assert held[4] is held[5]
    assert len({id(shared) for shared in held}) == len(INPUT_GROUPS)
    for spec, shared in zip(checkpoint.layer_matrices(1), held, strict=True):
        assert shared.h_II is not None
        assert torch.equal(shared.h_II, qwen2_calibration.hessian(spec.key))
    first = weakref.ref(held[0])
    held.clear()
    gc.collect()
    assert first() is None


def test_without_calibration_inputs_of_one_width_are_alike(qwen2: Path) -> None:
    checkpoint = open_checkpoint(qwen2)
    inputs = SharedInputs(None, torch.device("cpu"))
    q, up, down = (checkpoint.layer_matrices(0)[i] for i in (0, 5, 6))
    assert inputs.of(q) is inputs.of(up)
    assert inputs.of(down).in_features == down.in_features
    assert inputs.of(down).h_II is None


def test_a_wide_input_is_loaded_when_it_is_needed(
    qwen2: Path, qwen2_calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = open_checkpoint(qwen2).layer_matrices(0)[0]
    weight = torch.randn(spec.out_features, spec.in_features, generator=torch.Generator().manual_seed(0))
    held = SharedInputs(qwen2_calibration, torch.device("cpu")).of(spec)
    monkeypatch.setattr(module, "EXACT_WIDTH", 0)
    wide = SharedInputs(qwen2_calibration, torch.device("cpu")).of(spec)
    assert callable(wide.h_II)
    assert isinstance(held.h_II, torch.Tensor)
    blobs = [compress_matrix(weight, shared.h_II, ANCHORS[0], shared=shared).blob() for shared in (wide, held)]
    assert torch.equal(*blobs)
