"""``python -m cli``: the same as ``bitbudget``."""

from __future__ import annotations

from cli.main import main

main()
