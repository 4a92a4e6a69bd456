"""Company multipliers: sensitivities measured one matrix at a time, corrected for what layers cost together.

Where all matrices are at one config, restoring layer l saves Δ_l nats; alone its matrices cost Σ_i KL_i there. With
m_l = Δ_l / Σ_{i in l} KL_i, a_i·m_l is what an error costs in company. Several configs are averaged in log.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.sensitivity import UNKNOWN_LOG_SE, Z95, Sensitivity
from compress_core.errors import FitError
from compress_core.matrix import MatrixKey

#: a multiplier beyond these is an accident of noise
LIMITS = (1 / 8, 8.0)
_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class LayerSaving:
    """One layer at one config, on the same sequences."""

    layer_idx: int
    config_hash: str
    #: Δ_l, nats a token of each sequence
    saved_per_sequence: Sequence[float] | NDArray[np.float64]
    #: Σ_i KL_i of the layer's matrices at this config, each alone
    alone_per_sequence: Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Multiplier:
    """m_l."""

    layer_idx: int
    value: float
    #: standard error of its log, from a bootstrap of the sequences; 1 where it was cut to a limit, as a KL at its floor
    log_se: float


def company_multipliers(savings: Iterable[LayerSaving], *, seed: int = 0) -> dict[int, Multiplier]:
    """m_l of each layer, averaged in log over configs.

    Raises:
        FitError: no layer, or savings of other numbers of sequences.
    """
    groups: dict[int, list[LayerSaving]] = {}
    lengths = set()
    for saving in savings:
        groups.setdefault(saving.layer_idx, []).append(saving)
        lengths |= {len(saving.saved_per_sequence), len(saving.alone_per_sequence)}
    if len(lengths) != 1:
        raise FitError("company multipliers need at least one layer, and the same sequences for all")
    n = lengths.pop()
    weight_BN = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_DRAWS) / n
    out = {}
    for layer_idx, group in sorted(groups.items()):
        points = np.array([_log_ratio(np.full((1, n), 1 / n), saving)[0] for saving in group])
        draws = np.mean([_log_ratio(weight_BN, saving) for saving in group], axis=0)
        # draws that are all cut to one limit do not scatter, but that does not make them certain
        n_cut = int(((points <= math.log(LIMITS[0])) | (points >= math.log(LIMITS[1]))).sum())
        log_se = max(float(draws.std(ddof=1)), n_cut / len(group) * UNKNOWN_LOG_SE)
        out[layer_idx] = Multiplier(layer_idx, math.exp(float(points.mean())), log_se)
    return out


def _log_ratio(weight_BN: NDArray[np.float64], saving: LayerSaving) -> NDArray[np.float64]:
    """(B,) log m; a layer that costs nothing alone is left as it is."""
    saved_B = weight_BN @ np.asarray(saving.saved_per_sequence)
    alone_B = weight_BN @ np.asarray(saving.alone_per_sequence)
    ratio_B = np.divide(saved_B, alone_B, out=np.ones_like(saved_B), where=alone_B > 0)
    return np.log(np.clip(ratio_B, *LIMITS))


def in_company(
    sensitivities: Mapping[MatrixKey, Sensitivity], multipliers: Mapping[int, Multiplier]
) -> dict[MatrixKey, Sensitivity]:
    """a_i·m_l of the matrix's layer; layers without a multiplier stay as they are. ``raw`` remains what was measured
    alone."""
    out = {}
    for key, found in sensitivities.items():
        multiplier = multipliers.get(key.layer_idx)
        if multiplier is not None:
            value, log_se = found.value * multiplier.value, math.hypot(found.log_se, multiplier.log_se)
            low, high = value * math.exp(-Z95 * log_se), value * math.exp(Z95 * log_se)
            found = replace(found, value=value, log_se=log_se, low=low, high=high)
        out[key] = found
    return out
