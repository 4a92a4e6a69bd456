"""Bytes in memory at the peak of each step, from shapes alone.

Activations are float32 or, in calibrations, bfloat16; H is float32, and its sums float64. What is counted is what grows
with the model; libraries and pieces of fixed size are ``BASE`` together.

Shapes: T = tokens at once, I = in_features, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compress_core.matrix import MatrixSpec
from compress_core.plan.shapes import ModelShapes, hessian_bytes, inputs_of

#: interpreter, torch, transformers and pieces of fixed size: of the host, and of a card's context and libraries
BASE, BASE_DEVICE = 700_000_000, 700_000_000
#: tokens that go through a layer at once
BATCH_TOKENS = 4096
#: reference logits and probabilities are kept up to this, and else so many log-probabilities of each position
#: (compress_core.evaluate.reference)
REFERENCE_LIMIT, TOP_K = 1 << 31, 1024
#: hidden states of replacements that go through the later layers together (compress_core.sensitivity.measure)
WAITING_LIMIT = 1 << 32
#: hidden states of a calibration beyond this are mapped from files (compress_core.stream.states)
HIDDEN_LIMIT = 4 << 30
#: bytes of a float32
FLOAT32 = 4
#: columns of H that a calibration adds up at once
_PANEL = 1024
#: logits that are compared at once
_LOGITS = 1 << 22


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one step at its peak: on the device that computes, in the host's memory, and mapped on the disk."""

    device: int
    host: int
    #: what takes most of the device, for people
    largest: str
    #: of hidden states and Hessians in files meanwhile
    scratch: int = 0


def resident_bytes(shapes: ModelShapes) -> int:
    """Embedding, norms and head in float32: they stay on the device while layers pass."""
    weights = shapes.original_bytes - shapes.fixed_bytes
    size = weights / max(1, shapes.n_weights)
    return round(4 * shapes.fixed_bytes / max(size, 1))


def layer_bytes(shapes: ModelShapes) -> int:
    """The widest layer in float32."""
    return 4 * sum(spec.n_weights for spec in shapes.widest_layer)


def hidden_bytes(shapes: ModelShapes, tokens: int) -> int:
    """Hidden states of all tokens between two layers."""
    return 4 * tokens * shapes.hidden_size


def matrix_bytes(spec: MatrixSpec) -> int:
    """What compressing a matrix needs: four times W and three times H."""
    return 4 * (4 * spec.n_weights + 3 * spec.in_features**2)


def activation_bytes(shapes: ModelShapes) -> int:
    """Of one batch within the widest layer: gate, up and their product, and what attention holds."""
    widths = [spec.out_features for spec in shapes.widest_layer if spec.key.expert_idx < 1]
    return 4 * BATCH_TOKENS * (sum(widths) + 4 * shapes.hidden_size)


def moments_bytes(specs: Iterable[MatrixSpec]) -> int:
    """Sums in float64 of the upper halves of all inputs of a layer, and a panel of the widest."""
    widths = list(inputs_of(specs).values())
    return sum(4 * width * (width + _PANEL) for width in widths) + 8 * _PANEL * max(widths)


def calibrate(shapes: ModelShapes, tokens: int, size: int = FLOAT32) -> Footprint:
    """A layer, its activations and the sums of its inputs; the hidden states of all tokens.

    Args:
        size: bytes of a weight or activation.
    """
    share = size / FLOAT32
    parts = {
        "the sums of H of one layer": moments_bytes(shapes.widest_layer),
        "one layer's weights": round(share * layer_bytes(shapes)),
        "embedding and head": round(share * resident_bytes(shapes)),
        "activations of a batch": round(share * activation_bytes(shapes)),
    }
    hidden = round(share * hidden_bytes(shapes, tokens))
    host = layer_bytes(shapes) // 2
    if hidden <= HIDDEN_LIMIT:
        return _footprint(parts, host=host + hidden)
    return _footprint(parts, host=host, scratch=2 * hidden)  # a layer reads one file and writes another


def sweep(shapes: ModelShapes) -> Footprint:
    """The largest matrix with its H."""
    spec = shapes.largest
    name = f"{spec.key} ({spec.out_features} × {spec.in_features}): 4 W + 3 H"
    return _footprint({name: matrix_bytes(spec)}, host=4 * spec.n_weights + 4 * spec.in_features**2)


def sensitivity(shapes: ModelShapes, tokens: int) -> Footprint:
    """A layer, and a matrix that is compressed beside it; hidden states of several replacements wait on the host.

    That is what it takes at least: layers stay in memory where half of what is free holds them.
    """
    reference = 8 * tokens * shapes.vocab_size
    parts = {
        "the largest matrix: 4 W + 3 H": matrix_bytes(shapes.largest),
        "one layer's weights": layer_bytes(shapes),
        "embedding and head": resident_bytes(shapes),
        "activations and logits": activation_bytes(shapes)
        + 12 * _LOGITS
        + (reference if reference <= REFERENCE_LIMIT else 0),
    }
    hidden = hidden_bytes(shapes, tokens)
    # a log-probability and an id of each
    largest = 8 * tokens * min(TOP_K, shapes.vocab_size) if reference > REFERENCE_LIMIT else 0
    return _footprint(parts, host=layer_bytes(shapes) // 2 + 3 * hidden + max(hidden, WAITING_LIMIT) + largest)


def evaluate(shapes: ModelShapes, tokens: int) -> Footprint:
    """A layer and a batch; the hidden states of all windows, in memory."""
    parts = {
        "embedding and head": resident_bytes(shapes),
        "one layer's weights": layer_bytes(shapes),
        "activations and logits": activation_bytes(shapes) + 12 * _LOGITS,
    }
    return _footprint(parts, host=layer_bytes(shapes) // 2 + hidden_bytes(shapes, tokens))


def validate(shapes: ModelShapes, tokens: int, allocations: int) -> Footprint:
    """A matrix of a layer is decomposed, then the layer runs; hidden states of all allocations and of the original."""
    decomposing = {"the largest matrix: 4 W + 3 H": matrix_bytes(shapes.largest)}
    running = {
        "one layer's weights": layer_bytes(shapes),
        "activations and logits": activation_bytes(shapes) + 12 * _LOGITS,
    }
    parts = {"embedding and head": resident_bytes(shapes)} | max(decomposing, running, key=lambda p: sum(p.values()))
    hidden = (allocations + 1) * hidden_bytes(shapes, tokens)
    # the decomposed cells of a layer are at most as large as the layer
    host = layer_bytes(shapes)
    if hidden <= HIDDEN_LIMIT:
        return _footprint(parts, host=host + hidden)
    return _footprint(parts, host=host, scratch=2 * hidden)


def while_observing(found: Footprint, shapes: ModelShapes, tokens: int, size: int = FLOAT32) -> Footprint:
    """A step that computes H anew as it goes: each layer is observed first, then its H is on the disk meanwhile."""
    observing = calibrate(shapes, tokens, size)
    return Footprint(
        max(found.device, observing.device),
        max(found.host, observing.host),
        found.largest if found.device >= observing.device else observing.largest,
        found.scratch + observing.scratch + hessian_bytes(shapes.widest_layer),
    )


def _footprint(parts: dict[str, int], *, host: int, scratch: int = 0) -> Footprint:
    return Footprint(sum(parts.values()), host, max(parts, key=lambda name: parts[name]), scratch)
