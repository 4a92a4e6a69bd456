"""LayerClusters: do layers fall into groups by their error profiles, and into how many?

A layer's vector is its log error at every (projection, config) that all layers have, minus the mean over layers; with
its level, or with each matrix's level taken out (the shape alone). Ward's hierarchical clustering (deterministic) cuts
it into k groups. Whether to cut at all, and how often, is asked of three things:

* the gap statistic (Tibshirani, Walther & Hastie 2001): within-group scatter against that of uniform data in the box
  of the principal axes; the smallest k within one standard error of the next is taken, and that may be 1;
* a permutation test: each column shuffled over the layers by itself. Where the layers' columns do not vary together
  more than shuffled ones do, their differences are noise and there are no groups;
* the mean silhouette (Rousseeuw 1987): below 0.25 there is no substantial structure (Kaufman & Rousseeuw 1990).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from compress_core.errors import FitError
from compress_core.fit.profiles import ErrorProfiles

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
#: groups that are tried at most
_MOST_GROUPS = 8
#: fewer layers have no groups that could be told from chance
_FEWEST_LAYERS = 4
_REFERENCES = 50
_PERMUTATIONS = 199
_ALPHA = 0.05
_SUBSTANTIAL = 0.25


@dataclass(frozen=True, slots=True)
class ClusterScore:
    """How well k groups do."""

    k: int
    #: log within-group scatter of uniform data minus that of the layers, and its standard error
    gap: float
    gap_error: float
    #: mean over layers; None for k = 1
    silhouette: float | None


@dataclass(frozen=True, slots=True)
class LayerCluster:
    """One group of layers."""

    layers: tuple[int, ...]
    #: mean log error at each of the columns, minus the mean over all layers
    profile: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LayerClusters:
    """The groups found, and why so many."""

    #: "level_and_shape" or "shape"
    basis: str
    k: int
    reason: str
    scores: tuple[ClusterScore, ...]
    #: that columns shuffled over layers vary together as much; None where it was not asked
    p_value: float | None
    clusters: tuple[LayerCluster, ...]
    #: (projection, b_q, rank) of each entry of a profile
    columns: tuple[tuple[str, int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; ``from_dict`` is not needed: whoever draws it takes these fields."""
        return {
            "basis": self.basis,
            "k": self.k,
            "reason": self.reason,
            "scores": [
                {"k": s.k, "gap": s.gap, "gap_error": s.gap_error, "silhouette": s.silhouette} for s in self.scores
            ],
            "p_value": self.p_value,
            "clusters": [{"layers": list(c.layers), "profile": list(c.profile)} for c in self.clusters],
            "columns": [{"projection": p, "b_q": b, "rank": r} for p, b, r in self.columns],
        }


def cluster_layers(profiles: ErrorProfiles, *, shape_only: bool = False, seed: int = 0) -> LayerClusters:
    """Group the layers of a sweep; deterministic for a seed.

    Args:
        shape_only: take each matrix's mean log error out first, so that only the profile's shape counts.

    Raises:
        FitError: fewer than two layers, or no config is measured in all of them.
    """
    basis = "shape" if shape_only else "level_and_shape"
    layers, columns, x = _layer_vectors(profiles, profiles.profiles if shape_only else profiles.log_error)
    n = len(layers)
    if n < _FEWEST_LAYERS:
        reason = f"{n} layers are too few to tell groups from chance ({_FEWEST_LAYERS} would do)"
        return LayerClusters(basis, 1, reason, (), None, _groups(layers, x, np.ones(n, dtype=np.int64)), columns)
    if float(np.abs(x).max()) < 1e-9:
        reason = "the layers are equal"
        return LayerClusters(basis, 1, reason, (), None, _groups(layers, x, np.ones(n, dtype=np.int64)), columns)
    rng = np.random.default_rng(seed)
    most = min(_MOST_GROUPS, n - 1)
    scores = _scores(x, most, rng)
    p_value = _p_value(x, rng)
    k, reason = _choose(scores, p_value)
    labels = _cut(x, most)[k - 1]
    return LayerClusters(basis, k, reason, scores, p_value, _groups(layers, x, labels), columns)


def _layer_vectors(
    profiles: ErrorProfiles, values: FloatArray
) -> tuple[tuple[int, ...], tuple[tuple[str, int, int], ...], FloatArray]:
    """Layers, columns, and (L, c) values minus their mean over layers; experts of a layer are averaged."""
    layers = tuple(sorted({key.layer_idx for key in profiles.matrices}))
    if len(layers) < 2:
        raise FitError("layers cannot be grouped: only one is measured")
    at = {layer: i for i, layer in enumerate(layers)}
    blocks, columns = [], []
    for projection in dict.fromkeys(key.projection for key in profiles.matrices):
        total = np.zeros((len(layers), len(profiles.configs)))
        count = np.zeros(total.shape)
        for i, key in enumerate(profiles.matrices):
            if key.projection == projection:
                known = np.isfinite(values[i])
                total[at[key.layer_idx]][known] += values[i][known]
                count[at[key.layer_idx]] += known
        full: NDArray[np.bool_] = np.all(count > 0, axis=0)
        blocks.append(total[:, full] / count[:, full])
        columns += [(projection, b, r) for (b, r), use in zip(profiles.configs, full.tolist(), strict=True) if use]
    x = np.concatenate(blocks, axis=1)
    if not x.shape[1]:
        raise FitError("layers cannot be grouped: no config is measured in all of them")
    return layers, tuple(columns), x - x.mean(axis=0)


def _cut(x: FloatArray, most: int) -> list[IntArray]:
    """Labels 1 … k of Ward's groups, for k = 1 … most."""
    tree = linkage(x, method="ward")
    return [np.asarray(fcluster(tree, k, criterion="maxclust"), dtype=np.int64) for k in range(1, most + 1)]


def _scatter(x: FloatArray, labels: IntArray) -> float:
    """Sum of squared distances to the groups' means."""
    return float(sum(((g - g.mean(axis=0)) ** 2).sum() for g in (x[labels == k] for k in np.unique(labels))))


def _log_scatters(x: FloatArray, most: int) -> FloatArray:
    """(most,) log within-group scatter for k = 1 … most; what does not scatter has that of rounding."""
    least = 1e-20 * float((x**2).sum())
    return np.log([max(_scatter(x, labels), least) for labels in _cut(x, most)])


def _scores(x: FloatArray, most: int, rng: np.random.Generator) -> tuple[ClusterScore, ...]:
    """Gap and silhouette for k = 1 … most; the data are turned to their principal axes, which changes no distance."""
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    turned = u * s
    low, high = turned.min(axis=0), turned.max(axis=0)
    own = _log_scatters(turned, most)
    reference = np.stack([_log_scatters(rng.uniform(low, high, turned.shape), most) for _ in range(_REFERENCES)])
    gap = reference.mean(axis=0) - own
    error = reference.std(axis=0) * np.sqrt(1 + 1 / _REFERENCES)
    distance = squareform(pdist(turned))
    silhouettes = [None, *(_silhouette(distance, labels) for labels in _cut(turned, most)[1:])]
    return tuple(ClusterScore(k + 1, float(gap[k]), float(error[k]), silhouettes[k]) for k in range(most))


def _silhouette(distance: FloatArray, labels: IntArray) -> float:
    """Mean over layers of (b − a)/max(a, b): a = mean distance within the group, b = to the nearest other; 0 alone."""
    groups = np.unique(labels)
    mean = np.stack([distance[:, labels == g].sum(axis=1) for g in groups], axis=1)
    size = np.array([(labels == g).sum() for g in groups])
    out = []
    for i, label in enumerate(labels):
        own = int(np.searchsorted(groups, label))
        if size[own] == 1:
            out.append(0.0)
            continue
        a = mean[i, own] / (size[own] - 1)
        b = min(mean[i, g] / size[g] for g in range(len(groups)) if g != own)
        out.append(float((b - a) / max(a, b, 1e-300)))
    return float(np.mean(out))


def _p_value(x: FloatArray, rng: np.random.Generator) -> float:
    """Share of shuffles whose first principal component holds as much of the scatter as the layers' does."""

    def first(values: FloatArray) -> float:
        return float(np.linalg.svd(values, compute_uv=False)[0])

    if x.shape[1] < 2:
        return 0.0  # one column has nothing to vary together with: the gap alone decides
    found = first(x)
    shuffled = [first(rng.permuted(x, axis=0)) for _ in range(_PERMUTATIONS)]
    return (1 + sum(value >= found * (1 - 1e-12) for value in shuffled)) / (1 + _PERMUTATIONS)


def _choose(scores: Sequence[ClusterScore], p_value: float) -> tuple[int, str]:
    """k and why, in words."""
    if p_value > _ALPHA:
        return 1, (
            f"no groups: shuffled layers vary together as much in {p_value:.0%} of the shuffles, so layers differ no "
            "more than noise explains"
        )
    by_gap = next((a for a, b in itertools.pairwise(scores) if a.gap >= b.gap - b.gap_error), scores[-1])
    if by_gap.k == 1:
        return 1, (
            f"no groups: layers differ (p = {p_value:.3g}), but without gaps; two groups leave as much scatter as they "
            f"would of layers spread evenly (gap {scores[1].gap:.3g} ± {scores[1].gap_error:.2g} against "
            f"{scores[0].gap:.3g})"
        )
    if by_gap.silhouette is None or by_gap.silhouette < _SUBSTANTIAL:
        return 1, (
            f"no groups: {by_gap.k} would have the best gap, but their mean silhouette {by_gap.silhouette or 0:.2g} is "
            f"below {_SUBSTANTIAL:g}"
        )
    return by_gap.k, (
        f"{by_gap.k} groups: the smallest number whose gap ({by_gap.gap:.3g}) is within one standard error of the next "
        f"one's; mean silhouette {by_gap.silhouette:.2g}, p = {p_value:.3g} against shuffled layers"
    )


def _groups(layers: Sequence[int], x: FloatArray, labels: IntArray) -> tuple[LayerCluster, ...]:
    """In the order of their first layers."""
    first = sorted(set(labels.tolist()), key=lambda g: int(np.flatnonzero(labels == g)[0]))
    return tuple(
        LayerCluster(
            tuple(layers[i] for i in np.flatnonzero(labels == g).tolist()),
            tuple(float(v) for v in x[labels == g].mean(axis=0)),
        )
        for g in first
    )
