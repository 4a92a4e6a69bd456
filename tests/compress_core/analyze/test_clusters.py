"""Groups of layers by error profile, and how many there are."""

from __future__ import annotations

import json

import numpy as np
import pytest

from compress_core.analyze import cluster_layers
from compress_core.errors import FitError
from compress_core.fit import ErrorProfiles
from compress_core.matrix import PROJECTIONS, MatrixKey

CONFIGS = tuple((b, r) for b in (2, 3, 4) for r in (0, 8, 32))


def profiles(level: np.ndarray, tilt: np.ndarray | None = None, *, noise: float = 0.1, seed: int = 0) -> ErrorProfiles:
    """Layers with a level each, and a tilt over the bits."""
    rng = np.random.default_rng(seed)
    matrices = tuple(MatrixKey(i, p) for i in range(len(level)) for p in PROJECTIONS)
    bits = np.array([b for b, _ in CONFIGS], dtype=float)
    tilts = np.zeros(len(level)) if tilt is None else tilt
    rows = [-1.3 * bits + level[key.layer_idx] + tilts[key.layer_idx] * (bits - 3) for key in matrices]
    return ErrorProfiles(matrices, CONFIGS, np.array(rows) + noise * rng.normal(size=(len(matrices), len(CONFIGS))))


def test_planted_groups_are_found() -> None:
    level = np.repeat([0.0, 1.0, 2.5], 8)
    found = cluster_layers(profiles(level))
    assert (found.basis, found.k) == ("level_and_shape", 3)
    assert [cluster.layers for cluster in found.clusters] == [tuple(range(i, i + 8)) for i in (0, 8, 16)]
    assert found.p_value is not None
    assert found.p_value < 0.05
    assert found.scores[0].silhouette is None
    assert found.scores[2].silhouette is not None
    assert found.scores[2].silhouette > 0.7
    # profiles are around the mean over layers, of 7/6
    assert np.mean(found.clusters[0].profile) == pytest.approx(-7 / 6, abs=0.05)
    assert len(found.columns) == len(found.clusters[0].profile) == 63
    assert "3 groups" in found.reason
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["k"] == 3
    assert cluster_layers(profiles(level)) == found


def test_levels_do_not_count_where_only_the_shape_is_asked_for() -> None:
    level = np.repeat([0.0, 1.0], 6)
    assert cluster_layers(profiles(level)).k == 2
    shape = cluster_layers(profiles(level), shape_only=True)
    assert (shape.basis, shape.k) == ("shape", 1)
    tilted = cluster_layers(profiles(np.zeros(12), np.repeat([0.0, 0.5], 6)), shape_only=True)
    assert tilted.k == 2
    assert [cluster.layers for cluster in tilted.clusters] == [tuple(range(6)), tuple(range(6, 12))]


@pytest.mark.parametrize("n", [5, 8, 24])
def test_noise_has_no_groups(n: int) -> None:
    counts = [cluster_layers(profiles(np.zeros(n), seed=seed)) for seed in range(4)]
    assert [found.k for found in counts] == [1] * 4
    assert sum("noise explains" in found.reason for found in counts) >= 2
    assert counts[0].clusters[0].layers == tuple(range(n))


def test_a_steady_drift_over_depth_has_no_groups() -> None:
    found = cluster_layers(profiles(np.linspace(0, 3, 16)))
    assert found.k == 1
    assert found.p_value is not None
    assert found.p_value < 0.05
    assert "without gaps" in found.reason


def test_what_cannot_be_grouped_is_said() -> None:
    few = cluster_layers(profiles(np.array([0.0, 5.0, 0.0])))
    assert (few.k, few.p_value) == (1, None)
    assert "3 layers are too few" in few.reason
    equal = cluster_layers(profiles(np.zeros(6), noise=0.0))
    assert (equal.k, equal.reason) == (1, "the layers are equal")
    with pytest.raises(FitError, match="only one is measured"):
        cluster_layers(profiles(np.zeros(1)))
    whole = profiles(np.zeros(4))
    holes = whole.log_error.copy()
    holes[[7 * (j % 4) + p for j in range(9) for p in range(7)], [j for j in range(9) for _ in range(7)]] = np.nan
    with pytest.raises(FitError, match="no config is measured in all of them"):
        cluster_layers(ErrorProfiles(whole.matrices, whole.configs, holes))


def test_experts_are_averaged_and_holes_left_out() -> None:
    matrices = tuple(MatrixKey(i, "up", e) for i in range(4) for e in range(2))
    log_error = np.array([[float(key.layer_idx + key.expert_idx), 1.0] for key in matrices])
    log_error[3, 1] = np.nan
    found = cluster_layers(ErrorProfiles(matrices, ((2, 0), (3, 0)), log_error))
    assert found.columns == (("up", 2, 0), ("up", 3, 0))
    assert found.clusters[0].layers[0] == 0
