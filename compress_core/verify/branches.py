"""Branches: where allocations part on their way through the layers, and in which place each one's states lie.

Allocations that agree on all layers up to one have the same hidden states there. They go through it once, in one place,
and part where they first differ. The original model is one of the paths: a matrix without a config is left as it is.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress_core.config import CompressionConfig

#: the config of each of a layer's matrices; None: the original weight
LayerConfigs = tuple[CompressionConfig | None, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """States that a layer takes from one place to another."""

    source: int
    target: int
    #: one of the paths that lie there: 0 is the original model, 1 … are the allocations
    path: int


@dataclass(frozen=True, slots=True)
class Setting:
    """One way in which a layer's matrices are set, and the states that go through it so."""

    configs: LayerConfigs
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Branches:
    """The way of every path, the original model's first, from place 0 on."""

    #: of each layer, in the order in which they must run: a place is overwritten when nobody else needs what it holds
    layers: tuple[tuple[Setting, ...], ...]
    #: the place of each path after the last layer; paths that are equal throughout share one
    places: tuple[int, ...]

    @property
    def n_places(self) -> int:
        return max(self.places) + 1

    @classmethod
    def of(cls, allocations: Sequence[Sequence[LayerConfigs]]) -> Branches:
        """From the configs of each layer's matrices in each allocation.

        Configs of one hash count as the same, whatever fields without effect say.
        """
        if not allocations:
            raise ValueError("branches need an allocation")
        original = [(None,) * len(layer) for layer in allocations[0]]
        paths = [original, *allocations]
        places = [0] * len(paths)
        n_places = 1
        layers = []
        for layer_idx in range(len(original)):
            known: dict[tuple[str, ...], LayerConfigs] = {}
            #: place → what its paths are set to in this layer → these paths
            parting: dict[int, dict[tuple[str, ...], list[int]]] = {}
            for path, configs_of in enumerate(paths):
                configs = tuple(configs_of[layer_idx])
                key = tuple("" if config is None else config.config_hash for config in configs)
                known.setdefault(key, configs)
                parting.setdefault(places[path], {}).setdefault(key, []).append(path)
            settings = []
            for key in sorted(known):
                moves = []
                for source, groups in sorted(parting.items()):
                    if key not in groups:
                        continue
                    # who comes last stays in the place: nobody needs any more what it holds
                    target = source if key == max(groups) else n_places
                    n_places += target == n_places
                    moves.append(Move(source, target, groups[key][0]))
                    for path in groups[key]:
                        places[path] = target
                settings.append(Setting(known[key], tuple(moves)))
            layers.append(tuple(settings))
        return cls(tuple(layers), tuple(places))
