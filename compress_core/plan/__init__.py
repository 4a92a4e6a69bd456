"""What a study will cost before it runs: experiments, bytes, memory, seconds. Torch-free.

``shapes`` say what the model is, ``rates`` what the machine does in a second, ``prices`` what a step of a study
costs, ``verdict`` whether it fits.
"""

from __future__ import annotations

from compress_core.plan.machine import Machine
from compress_core.plan.prices import Pricer, StepPrice
from compress_core.plan.rates import Rates
from compress_core.plan.shapes import ModelShapes
from compress_core.plan.verdict import Finding, judge

__all__ = ["Finding", "Machine", "ModelShapes", "Pricer", "Rates", "StepPrice", "judge"]
