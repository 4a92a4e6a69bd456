"""`bitbudget doctor`: looks at everything that a stack stands on, changes nothing."""

from __future__ import annotations

from cli.doctor.examine import examine
from cli.doctor.finding import Finding, Level

__all__ = ["Finding", "Level", "examine"]
