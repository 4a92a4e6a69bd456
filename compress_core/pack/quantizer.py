"""Packed models in transformers: what ``AutoModelForCausalLM.from_pretrained`` finds by quant_method "bitbudget".

Modules of the compressed matrices become packed ones before weights are loaded (see ``modules``); everything else
(biases, embeddings, a tied or an own head) is loaded as ever. Importing this file registers both classes;
``compress_core.pack`` does so as soon as transformers is there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from compress_core.errors import ConfigError, PackedFormatError
from compress_core.pack.description import (
    DESCRIPTION_KEY,
    QUANT_METHOD,
    VERSION,
    ModelDescription,
    check_version,
)
from compress_core.pack.experts import PackedExperts
from compress_core.pack.header import read_packed
from compress_core.pack.modules import put_dense_modules, put_packed_modules
from compress_core.pack.names import ModuleNames

if TYPE_CHECKING:  # transformers is still being imported when it imports this file
    from transformers import PreTrainedModel


@register_quantization_config(QUANT_METHOD)
class BitbudgetConfig(QuantizationConfigMixin):
    """``quantization_config`` in config.json of a packed model. What was compressed how stands with the weights.

    Raises:
        PackedFormatError: the model has another format version.
        ConfigError: an unknown option.
    """

    def __init__(self, version: str = VERSION, quant_method: str = QUANT_METHOD, **unknown: Any) -> None:
        if "dequantize" in unknown:
            # transformers would drop it in silence: what the directory says wins over what is passed
            raise ConfigError("pass dequantize=True to from_pretrained itself, without a quantization_config")
        if unknown:
            raise ConfigError(f"the quantization_config of a packed model has no {sorted(unknown)[0]!r}")
        check_version(version)
        self.version = version
        self.quant_method = quant_method

    def to_dict(self) -> dict[str, Any]:
        """What belongs into config.json: how a directory is loaded is decided by each load."""
        return {"quant_method": self.quant_method, "version": self.version}


@register_quantizer(QUANT_METHOD)
class BitbudgetQuantizer(HfQuantizer):
    """Puts packed modules where the compressed matrices are, or dense ones with ``dequantize=True``."""

    # models are compressed by compress_core.pack.writer: transformers cannot do it while it loads
    requires_calibration = True

    _description: ModelDescription

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        if not checkpoint_files:
            raise PackedFormatError("a packed model is loaded from its directory: a state_dict cannot describe it")
        _, self._description = read_packed([Path(file) for file in checkpoint_files])
        # postprocess_model asks the config; the keyword came in through config.json's own entry
        dequantize = model.config.__dict__.pop("dequantize", False)
        if not isinstance(dequantize, bool):
            raise ConfigError(f"dequantize must be true or false, not {dequantize!r}")
        self.quantization_config.dequantize = dequantize
        put_packed_modules(model, self._description)
        n_layers = len(model.get_submodule(ModuleNames(model).path(self._description.layers_prefix)))
        if n_layers != self._description.n_layers:  # transformers would fill the others with random weights
            raise PackedFormatError(f"{self._description.n_layers} layers are packed, config.json has {n_layers}")
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.quantization_config.dequantize:
            return self._dequantize(model, dtype=model.config.dtype)
        model.config.dequantize = False  # saved again, the directory takes the keyword as before
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        """Each matrix dense, one after another; what ``model.dequantize()`` calls."""
        # save_pretrained leaves the name of the type in the config
        named: torch.dtype | None = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        has_experts = any(isinstance(module, PackedExperts) for module in model.modules())
        put_dense_modules(model, named or torch.get_default_dtype())
        if has_experts:
            _split_experts_when_saved(model)
        model.config.__dict__.pop("dequantize", None)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[None, dict[str, str]]:
        described = self._description
        # the decoder alone (AutoModel) saves its tensors without the prefix that they have below a head
        names = ModuleNames(model)
        matrices = {names.saved(name): info for name, info in described.matrices.items() if names.has_place(name)}
        saved = replace(described, layers_prefix=names.saved(described.layers_prefix), matrices=matrices)
        return None, {DESCRIPTION_KEY: saved.to_json()}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _split_experts_when_saved(model: PreTrainedModel) -> None:
    """Make ``save_pretrained`` write a tensor for each expert, as checkpoints have them.

    It undoes what was done to the tensors that were loaded; those of packed experts were not stacked then.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    used = list(getattr(model, "_weight_conversions", None) or [])
    known = {str(conversion.target_patterns) for conversion in used}
    for conversion in get_model_conversion_mapping(model, add_legacy=False):
        if isinstance(conversion, WeightConverter) and str(conversion.target_patterns) not in known:
            used.append(conversion)
    model._weight_conversions = used
