"""RoutedInputs: the second moments of what each routed expert of a layer reads.

gate and up of expert e read the tokens that were routed to e, its down projection what they make of them; each counts
once, whatever its routing weight. The H of few tokens knows few directions, and a matrix that is compressed with it is
worse in all others than one compressed without any H (docs/decisions/019). So an expert with fewer than ``ENOUGH``
times as many tokens as its input is wide leans on the first vectors that entered the layer's experts, as if they had
been routed to it: together they count as much as one token for each feature. Where an expert saw no token, they are all
there is.

Shapes: T tokens, K experts a token, D hidden width, F width of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress_core.calibrate.second_moment import SecondMoment
from compress_core.precision import exact_float32
from compress_core.stream.experts import check_experts, expert_hidden

#: vectors that stand in for those that an expert did not see; no more are kept
STAND_INS = 4096
#: tokens for each feature from which on an expert's H is its own
ENOUGH = 4


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
        for expert in sorted({*self.gate_up, *self.down}):
            routed_TD = x_TD[(experts_TK == expert).any(dim=-1)]
            if routed_TD.shape[0] == 0:
                continue
            if expert in self.gate_up:
                self.gate_up[expert].add(routed_TD)
            if expert in self.down:
                self.down[expert].add(expert_hidden(self.experts, expert, routed_TD))

    @torch.inference_mode()
    @exact_float32()
    def finish(self) -> None:
        """Let experts that saw few tokens lean on the first ones. To be called while the weights are still there."""
        if not self._first:
            return
        x_TD = torch.cat(self._first)
        few = [moment for moment in self.gate_up.values() if _saw_few(moment)]
        if few:
            shared = _moment(x_TD)
            for moment in few:
                moment.lean_on(shared, moment.width)
        for expert, moment in self.down.items():
            if _saw_few(moment):
                moment.lean_on(_moment(expert_hidden(self.experts, expert, x_TD)), moment.width)

    def _keep(self, x_TD: Tensor) -> None:
        room = STAND_INS - sum(x.shape[0] for x in self._first)
        if room > 0:
            self._first.append(x_TD[:room].clone())


def _saw_few(moment: SecondMoment) -> bool:
    return moment.n_tokens < ENOUGH * moment.width


def _moment(x_TI: Tensor) -> SecondMoment:
    moment = SecondMoment(x_TI.shape[1], x_TI.device)
    moment.add(x_TI)
    return moment
