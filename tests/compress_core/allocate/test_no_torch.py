"""fit, allocate, analyze and nbytes must load where there is no torch, no database and no web framework."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
for name in ("nbytes", "fit", "allocate", "analyze"):
    room = importlib.import_module(f"compress_core.{name}")
    for module in pkgutil.walk_packages(getattr(room, "__path__", ()), room.__name__ + "."):
        importlib.import_module(module.name)
    heavy = {"torch", "transformers", "sqlalchemy", "fastapi", "redis"} & set(sys.modules)
    assert not heavy, (name, heavy)
"""


def test_imports_only_numpy_and_scipy() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
