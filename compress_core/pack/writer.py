"""Compress a whole model and write it, layer by layer and file by file.

Tensors of one file lie in the order of their element sizes, so that each is aligned; packed matrices are bytes and
come last. The header in front names them all, so each layer's matrices go into a file of their own as soon as they
are compressed, and a shard is put together from these when its layers are done. Everything happens in a folder that
gets the final name at the very end: a killed run leaves no half model under it, and with a ``work_dir`` the next one
goes on after the last finished layer.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from compress_core.checkpoint.checkpoint import INDEX_FILE, Checkpoint
from compress_core.checkpoint.headers import DTYPE_BYTES, FileHeader, read_header
from compress_core.checkpoint.read import read_matrix
from compress_core.checkpoint.writer import Entry, SafetensorsWriter, encode_header
from compress_core.compressed import CompressedMatrix
from compress_core.config import CompressionConfig
from compress_core.decompose import compress_matrix
from compress_core.device import find_device
from compress_core.errors import CheckpointError, ConfigError, PackedFormatError
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.measurement import MatrixMeasurement
from compress_core.nbytes import predicted_nbytes
from compress_core.pack.description import (
    DESCRIPTION_KEY,
    PACKED_SUFFIX,
    QUANT_METHOD,
    VERSION,
    ModelDescription,
    PackedMatrixInfo,
)
from compress_core.pack.layout import fixed_bytes, header_bytes, module_name, stored_bytes
from compress_core.pack.report import BytesReport
from compress_core.pack.shards import SHARD_BYTES, Shard, head_spec, plan_shards
from compress_core.pack.work import work_folder
from compress_core.progress import Progress, silent
from compress_core.shared_inputs import SharedInputs
from compress_core.sweep import measure
from compress_core.version import NUMERICS_VERSION

if TYPE_CHECKING:
    from compress_core.calibrate.source import HessianSource

OnMeasurement = Callable[[MatrixKey, MatrixMeasurement], None]

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


def write_packed_model(
    checkpoint: Checkpoint,
    calibration: HessianSource | None,
    items: Mapping[MatrixKey, CompressionConfig],
    out_dir: Path | str,
    *,
    head: CompressionConfig | None = None,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    work_dir: Path | None = None,
    on_measurement: OnMeasurement | None = None,
    on_resume: Callable[[int, int], None] | None = None,
    progress: Progress = silent,
) -> BytesReport:
    """Compress every matrix with its config and write the packed model; its bytes are the sum that was told.

    Args:
        calibration: H for each matrix, asked for in the order of the layers; None is the identity everywhere.
        items: one config for each matrix of the checkpoint, with ranks that the matrix can have.
        head: how to compress the head, with the identity for H; None leaves it as it is.
        overwrite: replace ``out_dir`` where it exists, once the new model is complete.
        shard_bytes: bytes of uncompressed matrices that one file may hold; see ``plan_shards``.
        work_dir: where finished layers wait, so that a killed or interrupted call can be made again and goes on after
            the last of them, to the same bytes. Layers of another model, of other configs, H, numerics or device are
            discarded. It is gone when the model is there.
        on_measurement: called with each matrix's errors as soon as they are known; not for what an earlier call did.
        on_resume: called with the number of matrices that an earlier call has finished, and of all, if there are any.

    Raises:
        ConfigError: a matrix without config, a config without matrix, a head that is tied to the embedding, or
            ``out_dir`` exists or is the checkpoint's own.
        RankTooLarge: a rank exceeds min(out, in); before any work.
        NonFiniteValues: NaN in a weight (named).
        WorkInProgress: another process works in ``work_dir``.
        Interrupted: by ``progress``; nothing is left under ``out_dir``.
    """
    out_dir = Path(out_dir)
    torch_device = find_device(device)
    wanted = dict(items)
    _check_items(checkpoint, wanted)
    if head is not None:
        spec = head_spec(checkpoint)
        head.check_shape(spec.out_features, spec.in_features)
        wanted[spec.key] = head
    if out_dir.exists() and not overwrite:
        raise ConfigError(f"{out_dir} exists: choose another directory, or delete it")
    if out_dir.resolve() == checkpoint.path.resolve():
        raise ConfigError(f"{out_dir} holds the original weights: choose another directory")
    shards = plan_shards(checkpoint, shard_bytes, head=head is not None)
    binding = _binding(checkpoint, calibration, wanted, shard_bytes, torch_device)
    with work_folder(out_dir, work_dir, binding) as folder:
        compression = _Compression(
            checkpoint, calibration, wanted, torch_device, folder, on_measurement, progress, len(wanted)
        )
        compression.resume(shards, on_resume)
        for shard in shards:
            compression.write(shard)
        compression.finish(shards)
        report = BytesReport(
            expected_fixed_bytes=fixed_bytes(checkpoint, head=head, shard_bytes=shard_bytes),
            expected_matrix_bytes={
                spec.key: predicted_nbytes(items[spec.key], spec.out_features, spec.in_features)
                for spec in checkpoint.matrices()
            },
            actual_bytes=stored_bytes(folder) or 0,
        )
        if not report.exact:
            raise PackedFormatError(f"the packed model takes {report.actual_bytes} bytes, not {report.expected_bytes}")
    progress(len(wanted), len(wanted), f"wrote {report.actual_bytes} bytes")
    return report


@dataclass
class _Compression:
    """One model on its way into ``folder``."""

    checkpoint: Checkpoint
    calibration: HessianSource | None
    items: Mapping[MatrixKey, CompressionConfig]
    device: torch.device
    folder: Path
    on_measurement: OnMeasurement | None
    progress: Progress
    total: int
    #: matrices that are compressed
    done: int = 0
    inputs: SharedInputs = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = SharedInputs(self.calibration, self.device)

    def resume(self, shards: Iterable[Shard], on_resume: Callable[[int, int], None] | None) -> None:
        """Tell what an earlier call has finished; layers of whole files go."""
        finished, all_there = 0, True
        for shard in shards:
            whole = self._has_shard(shard)
            for layer_idx, specs in shard.layers():
                file = self._layer_file(layer_idx)
                if whole:
                    file.unlink(missing_ok=True)
                all_there = all_there and (whole or self._has_layer(file, specs))
                finished += len(specs) if all_there else 0
        if finished and on_resume is not None:
            on_resume(finished, self.total)

    def write(self, shard: Shard) -> None:
        """Compress the layers of a file that are not there yet, and put the file together."""
        if self._has_shard(shard):
            self.done += len(shard.specs)
            return
        files = {}
        for layer_idx, specs in shard.layers():
            file = self._layer_file(layer_idx)
            if self._has_layer(file, specs):
                self.done += len(specs)
            else:
                self._write_layer(file, specs)
            files[layer_idx] = read_header(file)
        self._put_together(shard, files)
        for layer in files.values():
            layer.path.unlink()

    def finish(self, shards: tuple[Shard, ...]) -> None:
        """What a directory needs besides its tensors."""
        if len(shards) > 1:
            _write_index(self.folder, {shard.name: _entries(shard, self.items) for shard in shards})
        _write_config(self.checkpoint, self.folder)
        for name in COMPANIONS:
            if (self.checkpoint.path / name).exists():
                shutil.copyfile(self.checkpoint.path / name, self.folder / name)

    def _layer_file(self, layer_idx: int) -> Path:
        return self.folder / f".layer-{layer_idx:05d}.safetensors"

    def _has_layer(self, file: Path, specs: tuple[MatrixSpec, ...]) -> bool:
        header = _read_if_sound(file)
        return header is not None and _contents(header) == [
            (entry.name, entry.dtype, entry.shape) for entry in _packed_entries(specs, self.items)
        ]

    def _has_shard(self, shard: Shard) -> bool:
        file = self.folder / shard.name
        if _read_if_sound(file) is None:
            return False
        expected = encode_header(_entries(shard, self.items), self._metadata(shard), header_bytes=header_bytes(shard))
        with file.open("rb") as stream:
            return stream.read(len(expected)) == expected

    def _write_layer(self, file: Path, specs: tuple[MatrixSpec, ...]) -> None:
        with SafetensorsWriter(file, _packed_entries(specs, self.items), {}) as writer:
            for spec in specs:
                blob = self._compress(spec, self.items[spec.key]).blob()
                # as it lies in memory: bytes would be a second copy
                writer.write_pieces(module_name(spec) + PACKED_SUFFIX, blob.numel(), [blob.numpy().data])
                self.done += 1

    def _compress(self, spec: MatrixSpec, config: CompressionConfig) -> CompressedMatrix:
        self.progress(self.done, self.total, f"compressing {spec.key} ({config})")

        def inner(fraction: float) -> None:  # lets a cancelled job stop inside a large matrix
            self.progress(self.done, self.total, f"compressing {spec.key} ({config}), {fraction:.0%}")

        weight = read_matrix(self.checkpoint, spec).to(self.device)
        if spec.key.layer_idx == self.checkpoint.n_layers:  # the head, whose input no calibration has seen
            shared = SharedInputs(None, self.device).of(spec)
        else:
            shared = self.inputs.of(spec)
        compressed = compress_matrix(weight, shared.h_II, config, device=self.device, shared=shared, progress=inner)
        if self.on_measurement is not None:
            self.on_measurement(spec.key, measure(weight.float(), shared.hessian, compressed))
        return compressed

    def _put_together(self, shard: Shard, layers: Mapping[int, FileHeader]) -> None:
        found = {tensor.name: tensor for tensor in shard.others}
        for layer in layers.values():
            found |= layer.tensors
        entries = _entries(shard, self.items)
        with SafetensorsWriter(
            self.folder / shard.name, entries, self._metadata(shard), header_bytes=header_bytes(shard)
        ) as writer:
            for entry in entries:
                writer.copy(entry.name, found[entry.name].file, found[entry.name].begin, entry.nbytes)

    def _metadata(self, shard: Shard) -> dict[str, str]:
        described = {
            module_name(spec): PackedMatrixInfo(
                self.items[spec.key], (spec.out_features, spec.in_features), None if spec.rows is None else spec.rows[0]
            )
            for spec in shard.specs
        }
        description = ModelDescription(
            self.checkpoint.fingerprint, self.checkpoint.layout.prefix, self.checkpoint.n_layers, described
        )
        # "format": what transformers and others look for before they read tensors
        return {"format": "pt", DESCRIPTION_KEY: description.to_json()}


def _packed_entries(specs: Iterable[MatrixSpec], items: Mapping[MatrixKey, CompressionConfig]) -> list[Entry]:
    return [
        Entry(
            module_name(spec) + PACKED_SUFFIX,
            "U8",
            (predicted_nbytes(items[spec.key], spec.out_features, spec.in_features),),
        )
        for spec in specs
    ]


def _entries(shard: Shard, items: Mapping[MatrixKey, CompressionConfig]) -> list[Entry]:
    """Every tensor of a file, in order: wide elements first."""
    others = [Entry(tensor.name, tensor.dtype, tensor.shape) for tensor in shard.others]
    return sorted([*others, *_packed_entries(shard.specs, items)], key=lambda entry: -DTYPE_BYTES[entry.dtype])


def _read_if_sound(file: Path) -> FileHeader | None:
    """The header of a file that is there with all its bytes."""
    if not file.exists():
        return None
    try:
        return read_header(file)
    except CheckpointError:  # it is made anew
        return None


def _contents(header: FileHeader) -> list[tuple[str, str, tuple[int, ...]]]:
    in_order = sorted(header.tensors.values(), key=lambda tensor: tensor.begin)
    return [(tensor.name, tensor.dtype, tensor.shape) for tensor in in_order]


def _binding(
    checkpoint: Checkpoint,
    calibration: HessianSource | None,
    items: Mapping[MatrixKey, CompressionConfig],
    shard_bytes: int,
    device: torch.device,
) -> str:
    """Hash of everything that the bytes of a packed model depend on."""
    made_of = {
        "format": VERSION,
        "checkpoint": checkpoint.fingerprint,
        "calibration": None if calibration is None else calibration.info.to_json(),
        "items": [(str(key), config.to_dict()) for key, config in sorted(items.items())],
        "shard_bytes": shard_bytes,
        "numerics": NUMERICS_VERSION,
        "torch": torch.__version__,
        "device": device.type,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def _check_items(checkpoint: Checkpoint, items: Mapping[MatrixKey, CompressionConfig]) -> None:
    keys = {spec.key for spec in checkpoint.matrices()}
    if missing := sorted(keys - set(items)):
        raise ConfigError(f"no config for matrix {missing[0]} ({len(missing)} matrices have none)")
    if unknown := sorted(set(items) - keys):
        raise ConfigError(f"a config for matrix {unknown[0]}, which {checkpoint.path} does not have")
    for spec in checkpoint.matrices():
        items[spec.key].check_shape(spec.out_features, spec.in_features)


def _write_index(folder: Path, entries: Mapping[str, list[Entry]]) -> None:
    """Which file holds which tensor, in the form that transformers reads."""
    index = {
        "metadata": {"total_size": sum(entry.nbytes for of_file in entries.values() for entry in of_file)},
        "weight_map": {entry.name: name for name, of_file in entries.items() for entry in of_file},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_config(checkpoint: Checkpoint, folder: Path) -> None:
    """config.json with what transformers needs to take the weights for packed ones."""
    config = checkpoint.config | {
        "quantization_config": {"quant_method": QUANT_METHOD, "version": VERSION},
        # from_pretrained(…, dequantize=True) sets it: transformers takes keywords that the config has
        "dequantize": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
