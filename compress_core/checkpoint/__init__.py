"""Read and write safetensors checkpoints lazily. Torch-free, but for ``read``."""

from compress_core.checkpoint.checkpoint import Checkpoint, check_checkpoint, open_checkpoint
from compress_core.checkpoint.headers import TensorHeader

__all__ = ["Checkpoint", "TensorHeader", "check_checkpoint", "open_checkpoint"]
