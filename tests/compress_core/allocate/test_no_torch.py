"""fit, allocate and analyze must load where there is no torch, no database and no web framework."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("room", ["fit", "allocate", "analyze"])
def test_imports_only_numpy_and_scipy(room: str) -> None:
    program = (
        f"import pkgutil, importlib, sys, compress_core.{room} as room\n"
        "for m in pkgutil.walk_packages(room.__path__, room.__name__ + '.'): importlib.import_module(m.name)\n"
        "heavy = {'torch', 'transformers', 'sqlalchemy', 'fastapi', 'redis'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
