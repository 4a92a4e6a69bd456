"""What the numbers say: gates and headlines. Needs numpy only."""

from compress_core.analyze import gates
from compress_core.analyze.headline import Contender, Guard, Headline, gain_from_nll
from compress_core.analyze.thresholds import GateThresholds
from compress_core.analyze.verdict import Estimate, GateResult, Verdict

__all__ = [
    "Contender",
    "Estimate",
    "GateResult",
    "GateThresholds",
    "Guard",
    "Headline",
    "Verdict",
    "gain_from_nll",
    "gates",
]
