"""A stored KL anchor, as estimates are made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from compress_core.allocate.sensitivity import KLAnchor
from compress_core.matrix import MatrixKey


class AnchorRow(Protocol):
    """The part of results_db.tables.SensitivityAnchor that an estimate is made from."""

    @property
    def layer_idx(self) -> int: ...
    @property
    def projection(self) -> str: ...
    @property
    def expert_idx(self) -> int: ...
    @property
    def anchor_config(self) -> Mapping[str, Any]: ...
    @property
    def anchor_error(self) -> float: ...
    @property
    def kl(self) -> float: ...
    @property
    def kl_se(self) -> float | None: ...
    @property
    def kl_per_sequence(self) -> Sequence[float] | None: ...


def anchor_of(row: AnchorRow) -> KLAnchor:
    """The anchor; its config says whether it has a low-rank part, where it has one (noise has none)."""
    each, config = row.kl_per_sequence, row.anchor_config
    return KLAnchor(
        MatrixKey(row.layer_idx, row.projection, row.expert_idx),
        row.anchor_error,
        row.kl,
        row.kl_se,
        None if each is None else tuple(each),
        config["rank"] > 0 if "rank" in config else None,
    )
