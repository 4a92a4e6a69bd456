"""BytesReport: what the allocator was told and what lies on the disk. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.config import CompressionConfig
from compress_core.matrix import MatrixKey
from compress_core.nbytes import predicted_nbytes
from compress_core.pack.layout import fixed_bytes
from compress_core.pack.shards import SHARD_BYTES


@dataclass(frozen=True)
class BytesReport:
    """Expected and actual bytes of the files that hold a packed model's tensors."""

    #: of everything but the matrices; a compressed head is in here
    expected_fixed_bytes: int
    expected_matrix_bytes: Mapping[MatrixKey, int]
    actual_bytes: int

    @property
    def decoder_bytes(self) -> int:
        """Bytes of the compressed matrices alone: budget scope ``decoder``."""
        return sum(self.expected_matrix_bytes.values())

    @property
    def expected_bytes(self) -> int:
        """Bytes of everything: budget scope ``model``."""
        return self.expected_fixed_bytes + self.decoder_bytes

    @property
    def exact(self) -> bool:
        return self.actual_bytes == self.expected_bytes


def expected_bytes(
    checkpoint: Checkpoint,
    items: Mapping[MatrixKey, CompressionConfig],
    *,
    head: CompressionConfig | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Bytes that ``write_packed_model`` will write for these configs, before anything is compressed.

    Raises:
        KeyError: a matrix without config.
        ConfigError: a head that is the token embedding is to be compressed.
        RankTooLarge: a rank that its matrix cannot have.
    """
    return fixed_bytes(checkpoint, head=head, shard_bytes=shard_bytes) + sum(
        predicted_nbytes(items[spec.key], spec.out_features, spec.in_features) for spec in checkpoint.matrices()
    )
