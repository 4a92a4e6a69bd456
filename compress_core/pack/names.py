"""ModuleNames: where in a transformers model the module of a matrix is, whose name comes from a checkpoint."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from compress_core.checkpoint.checkpoint import HEAD_TENSOR
from compress_core.pack.description import PACKED_SUFFIX

if TYPE_CHECKING:  # transformers is still being imported when the quantizer imports this file
    from transformers import PreTrainedModel

HEAD_MODULE = HEAD_TENSOR.removesuffix(".weight")


class ModuleNames:
    """Two names may differ: the decoder alone (AutoModel) has no prefix ``model.``, and of some families (multimodal
    ones) transformers renames what it loads and renames it back when it saves.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._prefix: str = getattr(model, "base_model_prefix", "")

    @property
    def model_name(self) -> str:
        return type(self._model).__name__

    def has_place(self, name: str) -> bool:
        """Whether a matrix belongs into this model: the head does not where the decoder alone is loaded."""
        return name != HEAD_MODULE or hasattr(self._model, HEAD_MODULE)

    def path(self, name: str) -> str:
        """The path of a module in the model."""
        renamed = self._renamed(name)
        return self.saved(name) if renamed == name else renamed

    def module(self, name: str) -> nn.Module | None:
        """The module itself; None where there is none."""
        try:
            return self._model.get_submodule(self.path(name))
        except AttributeError:
            return None

    def saved(self, name: str) -> str:
        """The name that the module has in what ``save_pretrained`` of this model writes."""
        if not self._prefix or name == HEAD_MODULE or self._renamed(name) != name:
            return name
        bare = name.removeprefix(f"{self._prefix}.")
        return f"{self._prefix}.{bare}" if hasattr(self._model, self._prefix) else bare

    def _renamed(self, name: str) -> str:
        """What transformers makes of the name of a tensor of this module."""
        full = f"{name}{PACKED_SUFFIX}"
        for renaming in self._renamings:
            full, _ = renaming.rename_source_key(full)
        return full.removesuffix(PACKED_SUFFIX)

    @cached_property
    def _renamings(self) -> list[Any]:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        found = get_model_conversion_mapping(self._model, add_legacy=False)
        return [renaming for renaming in found if isinstance(renaming, WeightRenaming)]
