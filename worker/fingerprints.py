"""A model's fingerprint, remembered by its files' sizes and times: reading 145 GB again for each job helps nobody."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from compress_core.checkpoint import Checkpoint


def remember_fingerprint(checkpoint: Checkpoint, cache: Path) -> str:
    """The checkpoint's fingerprint; its bytes are read only where files are new or have changed."""
    known = cache / _key(checkpoint)
    if known.exists():
        # where functools.cached_property keeps its value: everybody who asks this checkpoint later is spared too
        checkpoint.__dict__["fingerprint"] = known.read_text()
        return checkpoint.fingerprint
    fingerprint = checkpoint.fingerprint
    cache.mkdir(parents=True, exist_ok=True)
    temporary = known.with_name(f"{known.name}.{os.getpid()}")
    temporary.write_text(fingerprint)
    temporary.replace(known)
    return fingerprint


def _key(checkpoint: Checkpoint) -> str:
    """Hash of what changes when a file does: path, inode, size, times; and of the config."""
    files = sorted({tensor.file.resolve() for tensor in checkpoint.tensors.values()})
    facts = [[str(file), *_facts(file)] for file in files]
    return hashlib.sha256(json.dumps([checkpoint.config, facts], sort_keys=True).encode()).hexdigest()


def _facts(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
