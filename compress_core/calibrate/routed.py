"""RoutedInputs: the second moments of what each routed expert of a layer reads.

gate and up of expert e read the tokens that were routed to e, its down projection what they make of them; each counts
once, whatever its routing weight. An expert that no token reached gets the H of the first ``STAND_INS`` vectors that
entered the layer's experts, as if they had all been routed to it: better than none, since whatever reaches it later
comes from the same distribution.

Shapes: T tokens, K experts a token, D hidden width, F width of an expert.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress_core.calibrate.second_moment import SecondMoment
from compress_core.precision import exact_float32
from compress_core.stream.experts import check_experts, expert_hidden

#: vectors that stand in for an expert that saw none; no more are kept
STAND_INS = 4096


@dataclass
class RoutedInputs:
    """A hook for an experts module that gathers its experts' inputs.

    Raises:
        UnsupportedArchitecture: the module's experts compute something else (see ``check_experts``).
    """

    experts: nn.Module
    #: of gate and up, by expert, as far as they are wanted
    gate_up: dict[int, SecondMoment] = field(default_factory=dict)
    down: dict[int, SecondMoment] = field(default_factory=dict)
    _first: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_experts(self.experts)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook, registered with ``with_kwargs``."""
        given = dict(zip(("hidden_states", "top_k_index"), args, strict=False)) | kwargs
        x_TD, experts_TK = given["hidden_states"], given["top_k_index"]
        self._keep(x_TD)
        for expert in self._wanted():
            routed_T = (experts_TK == expert).any(dim=-1)
            self._add(expert, x_TD[routed_T])

    @torch.inference_mode()
    @exact_float32()
    def finish(self) -> None:
        """Let the first vectors stand in for experts that saw none. To be called while the weights are still there."""
        for expert in self._wanted():
            unseen = [moments[expert] for moments in (self.gate_up, self.down) if expert in moments]
            if any(moment.seen for moment in unseen):
                continue
            for x_TD in self._first:
                self._add(expert, x_TD, stand_in=True)

    def _wanted(self) -> Iterable[int]:
        return sorted({*self.gate_up, *self.down})

    def _add(self, expert: int, x_TD: Tensor, *, stand_in: bool = False) -> None:
        if x_TD.shape[0] == 0:
            return
        if expert in self.gate_up:
            self.gate_up[expert].add(x_TD, stand_in=stand_in)
        if expert in self.down:
            self.down[expert].add(expert_hidden(self.experts, expert, x_TD), stand_in=stand_in)

    def _keep(self, x_TD: Tensor) -> None:
        room = STAND_INS - sum(x.shape[0] for x in self._first)
        if room > 0:
            self._first.append(x_TD[:room].clone())
