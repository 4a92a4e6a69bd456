"""StreamedModel: a transformers decoder whose layers are filled with weights one at a time.

How a family calls its layers (masks, sliding windows, rotary embeddings, scaled embeddings) is not written down here
a second time: the model's own ``forward`` runs with every layer replaced by a relay, which notes the arguments that
the layer would have been called with. What comes after the layers (final norm, head) is run the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from compress_core.device import find_device
from compress_core.errors import CheckpointError, UnsupportedArchitecture
from compress_core.matrix import NO_EXPERT, MatrixSpec
from compress_core.precision import exact_float32
from compress_core.stream.experts import check_experts, expert_view, is_stacked, stack_experts

#: (batch, length) shapes whose layer arguments are remembered
_REMEMBERED_SHAPES = 4


class WeightSource(Protocol):
    """Where weights come from: a dense checkpoint (``DenseWeights``) or a packed model."""

    #: directory with config.json
    path: Path
    #: module path of the list of layers, e.g. ``model.layers``
    layers_prefix: str
    n_layers: int
    tied_head: bool

    def __contains__(self, name: object) -> bool: ...

    def tensor(self, name: str) -> Tensor: ...


class _Relay(nn.Module):
    """Stands in for a decoder layer: notes how it is called; returns its input, or ``answer`` where that is set."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_layer", layer)  # not a child: its weights stay on the meta device
        self.hidden: Tensor | None = None
        self.arguments: dict[str, Any] = {}
        self.answer: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        # some families read attributes of their layers (attention_type)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._layer, name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args:
            raise UnsupportedArchitecture("this family passes positional arguments to its decoder layers")
        self.hidden, self.arguments = hidden_states, kwargs
        return hidden_states if self.answer is None else self.answer


class StreamedModel:
    """Final norm resident; of embedding, decoder layers and head what is in use.

    The embedding is loaded when tokens are embedded and the head when logits are asked for; each lets go of the other,
    and loading a layer lets go of both: in float32 either is as large as several layers.

    Shapes: B sequences, T tokens, D hidden width, V vocabulary.

    Raises:
        CheckpointError: transformers cannot build the model, or the checkpoint lacks a weight that it needs.
        UnsupportedArchitecture: the model's list of layers is not where the checkpoint's is.
        DeviceNotFound: the device does not exist.
    """

    def __init__(
        self, source: WeightSource, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.source = source
        self.device = find_device(device)
        self.dtype = dtype
        self._model = _build_on_meta(source.path, dtype)
        #: module of the model that holds the list of layers, and the name of what it is in the checkpoint: they differ
        #: where the decoder is part of a multimodal model
        self._stack, self._stored_stack = self._find_stack(source.layers_prefix)
        name = source.layers_prefix.rpartition(".")[2]
        layers = getattr(self._model.get_submodule(self._stack), name, None)
        if not isinstance(layers, nn.ModuleList) or len(layers) != source.n_layers:
            raise UnsupportedArchitecture(
                f"{type(self._model).__name__} has no list of {source.n_layers} layers where the checkpoint has its "
                f"own, at {source.layers_prefix}"
            )
        self._layers = list(layers)
        self._relays = [_Relay(layer) for layer in self._layers]
        setattr(self._model.get_submodule(self._stack), name, nn.ModuleList(self._relays))
        self._arguments: dict[tuple[int, int], list[dict[str, Any]]] = {}
        names = {module: name for name, module in self._model.named_modules()}
        embedding, head = self._model.get_input_embeddings(), self._model.get_output_embeddings()
        #: modules of a vocabulary's size, and what the names of their tensors begin with
        self._vocabulary = {embedding: f"{names[embedding]}."}
        if head is not None:
            self._vocabulary[head] = f"{names[embedding if source.tied_head else head]}."
        self._embedding, self._head = embedding, head
        for prefix in self._vocabulary.values():
            self._check(self._stored_name(f"{prefix}weight"))
        self._fill(self._model, "")

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    @property
    def hidden_size(self) -> int:
        return int(self._model.config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        return int(self._model.config.get_text_config().vocab_size)

    @torch.inference_mode()
    @exact_float32()
    def embed(self, ids_BT: Tensor) -> Tensor:
        """The hidden states (B, T, D) that enter layer 0."""
        self._hold(self._embedding)
        self._call((ids_BT.shape[0], ids_BT.shape[1]), input_ids=ids_BT.to(self.device, torch.long))
        hidden = self._relays[0].hidden
        assert hidden is not None
        return hidden

    @torch.inference_mode()
    @exact_float32()
    def run_layer(self, layer_idx: int, hidden_BTD: Tensor) -> Tensor:
        """What a loaded layer makes of hidden states on this model's device."""
        shape = (hidden_BTD.shape[0], hidden_BTD.shape[1])
        if shape not in self._arguments:
            self._call(shape, inputs_embeds=torch.zeros_like(hidden_BTD))
        out = self._layers[layer_idx](hidden_BTD, **self._arguments[shape][layer_idx])
        return out[0] if isinstance(out, tuple) else out

    @torch.inference_mode()
    @exact_float32()
    def logits(self, hidden_ND: Tensor) -> Tensor:
        """(N, V) float32 logits of N positions that left the last layer; positions do not see each other here."""
        self._hold(self._head)
        return self._logits(hidden_ND)

    @torch.enable_grad()
    @exact_float32()
    def traced_layer(self, layer_idx: int, hidden_BTD: Tensor) -> Tensor:
        """As :meth:`run_layer`, with a way back for gradients of ``hidden_BTD``; weights have none."""
        shape = (hidden_BTD.shape[0], hidden_BTD.shape[1])
        if shape not in self._arguments:
            with torch.no_grad():
                self._call(shape, inputs_embeds=torch.zeros_like(hidden_BTD))
        arguments = {name: _usable(value) for name, value in self._arguments[shape][layer_idx].items()}
        out = self._layers[layer_idx](hidden_BTD, **arguments)
        return out[0] if isinstance(out, tuple) else out

    @torch.enable_grad()
    @exact_float32()
    def traced_logits(self, hidden_ND: Tensor) -> Tensor:
        """As :meth:`logits`, with a way back for gradients of ``hidden_ND``."""
        self._hold(self._head)
        return self._logits(hidden_ND)

    def load_layer(self, layer_idx: int) -> nn.Module:
        """Fill a layer with its weights and return it; ``release_layer`` frees them."""
        self._hold(None)
        layer = self._layers[layer_idx]
        self._fill(layer, f"{self._stack}.{self.source.layers_prefix.rpartition('.')[2]}.{layer_idx}.")
        return layer

    def release_layer(self, layer_idx: int) -> None:
        self._layers[layer_idx].to("meta")

    @contextmanager
    def layer(self, layer_idx: int) -> Iterator[nn.Module]:
        """A layer that is loaded inside the block."""
        try:
            yield self.load_layer(layer_idx)
        finally:
            self.release_layer(layer_idx)

    def module_of(self, layer: nn.Module, spec: MatrixSpec) -> nn.Module:
        """The module of a loaded layer that a matrix belongs to: a linear one, or all routed experts together.

        Raises:
            UnsupportedArchitecture: transformers' layer has no such module.
        """
        name = spec.module_name.removeprefix(f"{self.source.layers_prefix}.{spec.key.layer_idx}.")
        if spec.key.expert_idx != NO_EXPERT:
            name = name.rpartition(f".{spec.key.expert_idx}.")[0]
        try:
            return layer.get_submodule(name)
        except AttributeError as error:
            raise UnsupportedArchitecture(
                f"{type(layer).__name__} has no module {name}, which {spec.key} belongs to"
            ) from error

    def weight_view(self, layer: nn.Module, spec: MatrixSpec) -> Tensor:
        """A matrix (out_features, in_features) of a loaded layer, as a view of the parameter that holds it."""
        module = self.module_of(layer, spec)
        if spec.key.expert_idx != NO_EXPERT:
            return expert_view(module, spec.key.expert_idx, spec.key.projection)
        weight = module.get_parameter("weight")
        return weight if spec.rows is None else weight[slice(*spec.rows)]

    def _find_stack(self, layers_prefix: str) -> tuple[str, str]:
        stored = layers_prefix.rpartition(".")[0]
        try:
            self._model.get_submodule(stored)
        except AttributeError:
            return self._model.base_model_prefix, stored
        return stored, stored

    def _stored_name(self, name: str) -> str:
        """What a parameter of the model is called in the checkpoint."""
        inside = name.startswith(f"{self._stack}.")
        return self._stored_stack + name.removeprefix(self._stack) if inside else name

    def _logits(self, hidden_ND: Tensor) -> Tensor:
        last = self._relays[-1]
        last.answer = hidden_ND.unsqueeze(1)
        try:
            out = self._model(inputs_embeds=last.answer.detach(), use_cache=False)
        finally:
            last.answer = None
        logits: Tensor = out.logits.squeeze(1).float()
        return logits

    def _call(self, shape_BT: tuple[int, int], **inputs: Tensor) -> None:
        """Run the relays, without the head, and remember how they were called for this shape."""
        self._model.base_model(**inputs, use_cache=False)
        if len(self._arguments) >= _REMEMBERED_SHAPES:
            self._arguments.clear()
        self._arguments[shape_BT] = [relay.arguments for relay in self._relays]

    def _hold(self, wanted: nn.Module | None) -> None:
        """Have this one of embedding and head in memory, and not the other; None: neither."""
        for module in self._vocabulary:
            if module is not wanted:
                module.to("meta")
        if wanted is not None and any(parameter.is_meta for parameter in wanted.parameters()):
            with torch.inference_mode(False):  # or the weights could not be let go of outside of it
                self._fill(wanted, self._vocabulary[wanted])

    def _fill(self, module: nn.Module, prefix: str) -> None:
        """Give what is below ``module`` its weights, and every buffer its stored or computed value.

        Below the whole model that leaves out the embedding and the head.
        """
        later = set(self._vocabulary) if module is self._model else set()
        for child in module.modules():
            if child in later:
                continue
            if computed := [name for name, buffer in child.named_buffers(recurse=False) if buffer.is_meta]:
                for name in computed:
                    setattr(child, name, torch.empty_like(getattr(child, name), device=self.device))
                # random weights cost nothing on the meta device, where the parameters still are
                self._model._init_weights(child)
        for name, buffer in list(module.named_buffers()):
            stored = self._stored_name(prefix + name)
            if stored in self.source:
                buffer.copy_(self._read(stored, buffer.shape))
        for name, parameter in list(module.named_parameters(remove_duplicate=False)):
            owner_name, _, leaf = name.rpartition(".")
            owner = module.get_submodule(owner_name)
            if owner in later:
                continue
            weight = self._weight(self._stored_name(prefix + name), parameter, owner)
            setattr(owner, leaf, nn.Parameter(weight, requires_grad=False))

    def _weight(self, name: str, parameter: Tensor, owner: nn.Module) -> Tensor:
        if name not in self.source and is_stacked(name, parameter):
            check_experts(owner)
            return stack_experts(name, parameter, self._read, self.device, self.dtype)
        return self._read(name, parameter.shape).to(self.device, self.dtype)

    def _check(self, name: str) -> None:
        if name not in self.source:
            raise CheckpointError(
                f"{self.source.path} has no tensor {name}, which {self._model.config.model_type} needs"
            )

    def _read(self, name: str, shape: torch.Size | None = None) -> Tensor:
        self._check(name)
        tensor = self.source.tensor(name)
        if shape is not None and tensor.shape != shape:
            raise CheckpointError(f"{name} has shape {list(tensor.shape)}, config.json asks for {list(shape)}")
        return tensor


def _usable(value: Any) -> Any:
    """An argument of a layer, for autograd: what was made in inference mode cannot be saved for the way back."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    return tuple(map(_usable, value)) if isinstance(value, tuple) else value


def _build_on_meta(path: Path, dtype: torch.dtype) -> Any:
    try:
        # of a multimodal model the decoder alone: text goes past the other towers
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True).get_text_config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=dtype,
                # transformers takes sdpa, or eager attention where a family has none (soft-capped logits)
                attn_implementation=None,
                # one expert after another: the others need special kernels or copies of the weights
                experts_implementation="eager",
                trust_remote_code=False,
            )
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        OSError,
        StrictDataclassError,
    ) as error:
        raise CheckpointError(
            f"transformers cannot build the model that {path}/config.json describes: {error}"
        ) from error
    return model.eval()
