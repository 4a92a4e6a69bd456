"""What the parent imports for its horses: no thread runs there, nothing is compiled, and a fork can compute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
from worker.main import _preload, _prepare_environment

_prepare_environment()
_preload()
import torch
from compress_core import CompressionConfig, compress_matrix
from compress_core.codebooks.viterbi import cpu

torch.manual_seed(0)
weight = torch.randn(32, 48)
facts = {
    "numba": "numba" in sys.modules,
    "threads": len(os.listdir("/proc/self/task")),
    "compiled": sum(len(value.signatures) for value in vars(cpu).values() if hasattr(value, "signatures")),
    "codes": [],
}
for _ in range(2):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        blob = compress_matrix(weight, None, CompressionConfig(b_q=2, states=256)).blob()
        os.write(writing, bytes(blob[:16].tolist()))
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    facts["codes"].append([status, os.read(reading, 16).hex()])
print(json.dumps(facts))
"""


@pytest.mark.slow
def test_a_horse_computes_what_its_parent_has_only_imported(repo: Path) -> None:
    # the BLAS of numpy and scipy starts threads when it is imported, and renews them after a fork
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=repo, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert (facts["numba"], facts["threads"], facts["compiled"]) == (True, 1, 0)
    (status, codes), again = facts["codes"]
    assert status == 0
    assert len(codes) == 32
    assert again == [0, codes]
