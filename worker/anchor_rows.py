"""Rows of sensitivities: what the core measures and concludes, as the database keeps it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from compress_core import MatrixKey
from compress_core.allocate import Sensitivity
from compress_core.sensitivity.result import SensitivityResult
from results_db.tables import SensitivityAnchor


def key_of(row: SensitivityAnchor) -> MatrixKey:
    return MatrixKey(row.layer_idx, row.projection, row.expert_idx)


def sensitivity_row(result: SensitivityResult) -> dict[str, Any]:
    """The columns of an anchor that do not depend on the job."""
    return {
        "layer_idx": result.key.layer_idx,
        "projection": result.key.projection,
        "expert_idx": result.key.expert_idx,
        "anchor_config_hash": result.anchor.config_hash,
        "anchor_config": result.anchor.to_dict(),
        "anchor_error": result.error,
        "kl": result.kl_mean,
        "kl_se": result.kl_standard_error,
        "sensitivity": result.nats_per_error,
        "n_sequences": result.n_sequences,
        "kl_per_sequence": list(result.kl_per_sequence),
    }


def estimate_row(sensitivity: Sensitivity) -> dict[str, Any]:
    """The columns of an estimate that do not depend on the job."""
    key = sensitivity.matrix
    values = {name: value for name, value in asdict(sensitivity).items() if name != "matrix"}
    return {"layer_idx": key.layer_idx, "projection": key.projection, "expert_idx": key.expert_idx} | values
