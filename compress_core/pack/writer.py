"""Compress a whole model and write it, layer by layer.

Tensors of one file lie in the order of their element sizes, so that each is aligned; packed matrices are bytes and
come last. The header in front names them all, so matrices are spooled into a temporary file as they are compressed,
and the final file is put together at the end. Everything happens in a temporary directory that then gets the final
name: a killed run leaves no half model under it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from compress_core.calibrate.calibration import Calibration
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.headers import DTYPE_BYTES
from compress_core.checkpoint.read import read_matrix
from compress_core.checkpoint.writer import Entry, SafetensorsWriter
from compress_core.compressed import CompressedMatrix
from compress_core.config import CompressionConfig
from compress_core.decompose import compress_matrix
from compress_core.device import find_device
from compress_core.errors import ConfigError, PackedFormatError
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.measurement import MatrixMeasurement
from compress_core.pack.description import (
    DESCRIPTION_KEY,
    PACKED_SUFFIX,
    QUANT_METHOD,
    VERSION,
    ModelDescription,
    PackedMatrixInfo,
)
from compress_core.pack.layout import FILE_NAME, fixed_bytes, header_bytes, module_name
from compress_core.pack.report import BytesReport
from compress_core.progress import Progress, silent
from compress_core.shared_inputs import SharedInputs
from compress_core.sweep import measure

#: files that a packed model takes along from its checkpoint as they are; not counted in its bytes
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True, slots=True)
class _Source:
    """A tensor of the final file and where its bytes lie now."""

    entry: Entry
    file: Path
    offset: int


@dataclass
class _Spool:
    """A temporary file that packed matrices are appended to."""

    file: Path
    sources: list[_Source] = field(default_factory=list)

    def add(self, name: str, blob: Tensor) -> None:
        with self.file.open("ab") as stream:
            self.sources.append(_Source(Entry(name, "U8", tuple(blob.shape)), self.file, stream.tell()))
            stream.write(blob.numpy().tobytes())


def write_packed_model(
    checkpoint: Checkpoint,
    calibration: Calibration | None,
    items: Mapping[MatrixKey, CompressionConfig],
    out_dir: Path | str,
    *,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
    on_measurement: Callable[[MatrixKey, MatrixMeasurement], None] | None = None,
    progress: Progress = silent,
) -> BytesReport:
    """Compress every matrix with its config and write the packed model; its bytes are the sum that was told.

    Args:
        calibration: H for each matrix; None is the identity everywhere.
        items: one config for each matrix of the checkpoint, with ranks that the matrix can have.
        overwrite: replace ``out_dir`` where it exists, once the new model is complete.
        on_measurement: called with each matrix's errors as soon as they are known.

    Raises:
        ConfigError: a matrix without config, a config without matrix, or ``out_dir`` exists or is the checkpoint's own.
        RankTooLarge: a rank exceeds min(out, in); before any work.
        NonFiniteValues: NaN in a weight (named).
        Interrupted: by ``progress``; nothing is left under ``out_dir``.
    """
    out_dir = Path(out_dir)
    torch_device = find_device(device)
    _check_items(checkpoint, items)
    if out_dir.exists() and not overwrite:
        raise ConfigError(f"{out_dir} exists: choose another directory, or delete it")
    if out_dir.resolve() == checkpoint.path.resolve():
        raise ConfigError(f"{out_dir} holds the original weights: choose another directory")
    matrix_bytes: dict[MatrixKey, int] = {}
    described: dict[str, PackedMatrixInfo] = {}
    specs = checkpoint.matrices()
    inputs = SharedInputs(calibration, torch_device)
    with _finished_directory(out_dir) as directory:
        spool = _Spool(directory / "spool")
        for done, spec in enumerate(specs):
            config = items[spec.key]
            progress(done, len(specs), f"compressing {spec.key} ({config})")
            compressed = _compress(checkpoint, inputs, spec, config, torch_device, on_measurement, done, progress)
            spool.add(module_name(spec) + PACKED_SUFFIX, compressed.blob())
            described[module_name(spec)] = PackedMatrixInfo(config, compressed.shape)
            matrix_bytes[spec.key] = compressed.nbytes
        others = [
            _Source(Entry(tensor.name, tensor.dtype, tensor.shape), tensor.file, tensor.begin)
            for tensor in checkpoint.other_tensors
        ]
        sources = sorted([*others, *spool.sources], key=lambda source: -DTYPE_BYTES[source.entry.dtype])
        description = ModelDescription(checkpoint.fingerprint, checkpoint.layout.prefix, checkpoint.n_layers, described)
        # "format": what transformers and others look for before they read tensors
        metadata = {"format": "pt", DESCRIPTION_KEY: description.to_json()}
        with SafetensorsWriter(
            directory / FILE_NAME, [source.entry for source in sources], metadata, header_bytes=header_bytes(checkpoint)
        ) as writer:
            for source in sources:
                writer.copy(source.entry.name, source.file, source.offset, source.entry.nbytes)
        spool.file.unlink(missing_ok=True)
        _write_config(checkpoint, directory)
        for name in COMPANIONS:
            if (checkpoint.path / name).exists():
                shutil.copyfile(checkpoint.path / name, directory / name)
        report = BytesReport(
            expected_fixed_bytes=fixed_bytes(checkpoint),
            expected_matrix_bytes=matrix_bytes,
            actual_bytes=(directory / FILE_NAME).stat().st_size,
        )
        if not report.exact:
            raise PackedFormatError(f"the packed model takes {report.actual_bytes} bytes, not {report.expected_bytes}")
    progress(len(specs), len(specs), f"wrote {report.actual_bytes} bytes")
    return report


def _compress(
    checkpoint: Checkpoint,
    inputs: SharedInputs,
    spec: MatrixSpec,
    config: CompressionConfig,
    device: torch.device,
    on_measurement: Callable[[MatrixKey, MatrixMeasurement], None] | None,
    done: int,
    progress: Progress,
) -> CompressedMatrix:
    weight = read_matrix(checkpoint, spec).to(device)
    shared = inputs.of(spec)
    total = len(checkpoint.matrices())

    def inner(fraction: float) -> None:  # lets a cancelled job stop inside a large matrix
        progress(done, total, f"compressing {spec.key} ({config}), {fraction:.0%}")

    compressed = compress_matrix(weight, shared.h_II, config, device=device, shared=shared, progress=inner)
    if on_measurement is not None:
        on_measurement(spec.key, measure(weight.float(), shared.hessian, compressed))
    return compressed


def _check_items(checkpoint: Checkpoint, items: Mapping[MatrixKey, CompressionConfig]) -> None:
    keys = {spec.key for spec in checkpoint.matrices()}
    if missing := sorted(keys - set(items)):
        raise ConfigError(f"no config for matrix {missing[0]} ({len(missing)} matrices have none)")
    if unknown := sorted(set(items) - keys):
        raise ConfigError(f"a config for matrix {unknown[0]}, which {checkpoint.path} does not have")
    for spec in checkpoint.matrices():
        items[spec.key].check_shape(spec.out_features, spec.in_features)


def _write_config(checkpoint: Checkpoint, directory: Path) -> None:
    """config.json with what transformers needs to take the weights for packed ones."""
    config = checkpoint.config | {
        "quantization_config": {"quant_method": QUANT_METHOD, "version": VERSION},
        # from_pretrained(…, dequantize=True) sets it: transformers takes keywords that the config has
        "dequantize": False,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _finished_directory(out_dir: Path) -> Iterator[Path]:
    """A temporary directory beside ``out_dir`` that gets its name if the block ends well, and goes if it does not."""
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", suffix=".tmp", dir=out_dir.parent))
    try:
        yield directory
        directory.chmod(0o755)
        if out_dir.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", suffix=".old", dir=out_dir.parent))
            os.replace(out_dir, old)
            os.replace(directory, out_dir)
            shutil.rmtree(old)
        else:
            os.replace(directory, out_dir)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
