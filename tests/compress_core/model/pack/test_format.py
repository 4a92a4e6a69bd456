"""A reader written from docs/format.md alone, with numpy, against ours."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

import compress_core
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import TORCH_DTYPES
from compress_core.compressed import CompressedMatrix
from compress_core.config import CODEBOOK_BITS, CompressionConfig
from compress_core.nbytes import packed_parts
from compress_core.pack import PackedModel, write_packed_model

BASELINES = ("rtn", "gptq")
RANKLESS = (*BASELINES, "raw")


class SpecReader:
    """What the spec says, line by line; Ŵ in float64."""

    def __init__(self, spec: str) -> None:
        block = re.search(r"```json\n(.*?)```", spec, re.DOTALL)
        assert block is not None
        self.upper_levels = json.loads(block[1])
        self.fused: dict[str, dict[int, np.ndarray]] = defaultdict(dict)

    def read_file(self, path: Path) -> dict[str, np.ndarray]:
        data = path.read_bytes()
        n_header = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + n_header])
        described = json.loads(header["__metadata__"]["bitbudget"])
        assert described["version"] == "2"
        weights = {}
        for name, (number, rows, columns, *first_row) in described["matrices"].items():
            entry = header[f"{name}.packed"]
            assert entry["dtype"] == "U8"
            begin, end = (8 + n_header + offset for offset in entry["data_offsets"])
            weights[name] = self.weight(data[begin:end], described["configs"][number], rows, columns)
            if first_row:
                self.fused[name.rpartition(".")[0]][first_row[0]] = weights[name]
        return weights

    def read_directory(self, path: Path) -> dict[str, np.ndarray]:
        files = sorted(set(json.loads((path / "model.safetensors.index.json").read_text())["weight_map"].values()))
        weights = {name: weight for file in files for name, weight in self.read_file(path / file).items()}
        for module, parts in self.fused.items():
            weights[module] = np.concatenate([parts[first] for first in sorted(parts)])
        return weights

    def weight(self, blob: bytes, config: dict[str, Any], rows: int, columns: int) -> np.ndarray:
        bits, codebook = config["b_q"], config["codebook"]
        if codebook == "raw":
            return raw(blob, rows, columns)
        parts = self.parts(blob, config, rows, columns)
        if codebook in BASELINES:
            codes = unpack(parts["q_codes"], bits, rows * columns).reshape(rows, columns)
            return (codes - 2 ** (bits - 1) + 0.5) * parts["q_scale"].astype(float)[:, None]
        w = {"scalar": self.scalar, "e8": self.e8, "trellis": self.trellis}[codebook](parts, config, rows, columns)
        if config["rank"]:
            w = w + self.factor(parts, config, "l", rows) @ self.factor(parts, config, "r", columns)
        exponent = parts["q_rows"].astype(float) / 16
        scale = np.where(parts["q_rows"] == 255, 0.0, float(parts["q_scale"][0]) * 2**-exponent)
        signs = 2.0 * (np.random.RandomState(config["seed"]).randint(0, 2**32, columns, dtype=np.uint32) & 1) - 1
        return (scale[:, None] * w) @ rotation(columns) * signs

    def parts(self, blob: bytes, config: dict[str, Any], rows: int, columns: int) -> dict[str, np.ndarray]:
        bits, rank, codebook = config["b_q"], config["rank"], config["codebook"]
        both = config["factor_bits"]
        bits_l, bits_r = both if isinstance(both, list) else (both, both)
        blocks, tail = divmod(columns, 8)
        sizes: list[tuple[str, bool, type, int]] = [
            ("q_scale", codebook in BASELINES, np.float16, rows),
            ("q_scale", codebook not in BASELINES, np.float32, 1),
            ("l_values", rank > 0 and bits_l == 16, np.float16, rows * rank),
            ("l_scales", rank > 0 and bits_l < 16, np.float16, rank),
            ("r_values", rank > 0 and bits_r == 16, np.float16, rank * columns),
            ("r_scales", rank > 0 and bits_r < 16, np.float16, rank),
            ("q_rows", codebook not in BASELINES, np.uint8, rows),
            ("q_codes", codebook == "e8", np.uint8, 2 * rows * blocks),
            ("q_codes", codebook != "e8", np.uint8, math.ceil(rows * columns * bits / 8)),
            ("q_residual", codebook == "e8" and bits > 2, np.uint8, (bits - 2) * rows * blocks),
            ("q_tail", codebook == "e8" and tail > 0, np.uint8, math.ceil(rows * tail * bits / 8)),
            ("l_codes", rank > 0 and bits_l < 16, np.uint8, math.ceil(rows * rank * bits_l / 8)),
            ("r_codes", rank > 0 and bits_r < 16, np.uint8, math.ceil(rank * columns * bits_r / 8)),
        ]
        found, position = {}, 0
        for name, there, dtype, count in sizes:
            if there:
                found[name] = np.frombuffer(blob, dtype, count, position)
                position += found[name].nbytes
        assert position == len(blob)
        return found

    def levels(self, bits: int) -> np.ndarray:
        upper = np.array(self.upper_levels[str(bits)]) / 2**16
        return np.concatenate([-upper[::-1], upper])

    def factor(self, parts: dict[str, np.ndarray], config: dict[str, Any], side: str, length: int) -> np.ndarray:
        rank, both = config["rank"], config["factor_bits"]
        bits = (both[side == "r"]) if isinstance(both, list) else both
        shape = (length, rank) if side == "l" else (rank, length)
        if bits == 16:
            return parts[f"{side}_values"].astype(float).reshape(shape)
        codes = unpack(parts[f"{side}_codes"], bits, length * rank).reshape(shape)
        if config["codebook"] == "trellis" and bits == 4:
            values = self.trellis_values(codes, bits, config["states"])
        else:
            values = self.levels(bits)[codes]
        scales = parts[f"{side}_scales"].astype(float)
        return values * (scales if side == "l" else scales[:, None])

    def scalar(self, parts: dict[str, np.ndarray], config: dict[str, Any], rows: int, columns: int) -> np.ndarray:
        return self.levels(config["b_q"])[unpack(parts["q_codes"], config["b_q"], rows * columns)].reshape(
            rows, columns
        )

    def e8(self, parts: dict[str, np.ndarray], config: dict[str, Any], rows: int, columns: int) -> np.ndarray:
        bits = config["b_q"]
        blocks, tail = divmod(columns, 8)
        unit = {2: 1.03, 3: 1.03, 4: 0.95}[bits]
        values = e8p(unpack(parts["q_codes"], 16, rows * blocks)) / unit
        if bits == 3:
            values = values + roots()[unpack(parts["q_residual"], 8, rows * blocks)] / (2 * unit)
        if bits == 4:
            values = values + e8p(unpack(parts["q_residual"], 16, rows * blocks)) / (3.75 * unit)
        values = values.reshape(rows, 8 * blocks)
        if tail:
            last = self.levels(bits)[unpack(parts["q_tail"], bits, rows * tail)].reshape(rows, tail)
            values = np.concatenate([values, last], axis=1)
        return values

    def trellis(self, parts: dict[str, np.ndarray], config: dict[str, Any], rows: int, columns: int) -> np.ndarray:
        codes = unpack(parts["q_codes"], config["b_q"], rows * columns).reshape(rows, columns)
        return self.trellis_values(codes, config["b_q"], config["states"])

    def trellis_values(self, codes: np.ndarray, bits: int, states: int) -> np.ndarray:
        rows, columns = codes.shape
        if rows < 16:
            return self.levels(bits)[codes]
        log_states = states.bit_length() - 1
        values = np.empty((rows, columns))
        table = trellis_table(bits, log_states)
        for tile_rows in np.array_split(np.arange(rows), math.ceil(rows / 128)):
            for left in range(0, columns, 2):
                area = np.ix_(tile_rows, np.arange(left, min(left + 2, columns)))
                symbols = codes[area].T.reshape(-1)
                state = np.zeros_like(symbols)
                for back in range(math.ceil(log_states / bits)):
                    state += np.roll(symbols, back) << (bits * back)
                values[area] = table[state % states].reshape(codes[area].T.shape).T
        return values


def raw(blob: bytes, rows: int, columns: int) -> np.ndarray:
    words, kind = np.frombuffer(blob, np.uint16, rows * columns), blob[2 * rows * columns :]
    assert kind in (b"\0", b"\1")
    values = words.view(np.float16) if kind == b"\1" else (words.astype(np.uint32) << 16).view(np.float32)
    return values.astype(float).reshape(rows, columns)


def unpack(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    all_bits = np.unpackbits(data, bitorder="little")[: count * bits].reshape(count, bits)
    return all_bits.astype(np.int64) @ (1 << np.arange(bits))


def rotation(width: int) -> np.ndarray:
    power = width & -width
    odd = width // power
    high = np.array([[(-1) ** (a & b).bit_count() for b in range(power)] for a in range(power)]) / math.sqrt(power)
    angle = 2 * math.pi * (np.outer(np.arange(odd), np.arange(odd)) % odd) / odd
    return np.kron(high, (np.cos(angle) + np.sin(angle)) / math.sqrt(odd))


def e8p(codes: np.ndarray) -> np.ndarray:
    rows: list[tuple[float, ...]] = []
    for fives, threes in ((0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (2, 0), (0, 8)):
        vectors = set()
        for places in itertools.permutations(range(8), fives + threes) if threes < 8 else [tuple(range(8))]:
            vector = [0.5] * 8
            for n, place in enumerate(places):
                vector[place] = 2.5 if n < fives else 1.5
            vectors.add(tuple(vector))
        rows += sorted(vectors)
    table = np.array(rows)
    assert table.shape == (256, 8)
    values = table[codes >> 8]
    negative = (codes[:, None] >> np.arange(1, 8)) & 1
    last = (negative.sum(1) + values.sum(1).astype(int)) % 2
    signs = 1 - 2 * np.column_stack([negative, last])
    return signs * values + np.where(codes & 1, -0.25, 0.25)[:, None]


def roots() -> np.ndarray:
    rows = []
    for i, j in itertools.combinations(range(8), 2):
        for pair in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            row = np.zeros(8)
            row[[i, j]] = pair
            rows.append(row)
    rows += [np.array(v) for v in itertools.product((0.5, -0.5), repeat=8) if sum(x < 0 for x in v) % 2 == 0]
    rows += [sign * 2 * np.eye(8)[i] for i in range(8) for sign in (1, -1)]
    return np.array(rows)


def trellis_table(bits: int, log_states: int) -> np.ndarray:
    with np.load(Path(compress_core.__file__).parent / "codebooks" / "trellis_tables.npz") as stored:
        if log_states <= 12:
            return stored[f"steps_{bits}_{log_states}"] * 2.0**-12
        rows, spread = stored[f"rows_{bits}_{log_states}"].tolist(), float(stored[f"spread_{bits}_{log_states}"])
    quantile = NormalDist().inv_cdf
    ranks = [int("".join(str((row & s).bit_count() & 1) for row in rows), 2) for s in range(2**log_states)]
    return np.array([round(spread * quantile((rank + 0.5) / len(ranks)) * 2**20) / 2**20 for rank in ranks])


def random_matrix(config: CompressionConfig, shape: tuple[int, int]) -> CompressedMatrix:
    """Any bytes are codes; scales and factors must be numbers."""
    generator = torch.Generator().manual_seed(sum(shape) + config.b_q)
    packed = {}
    for part in packed_parts(config, *shape):
        if part.dtype == "U8":
            most = 2 if part.name == "q_type" else 256
            packed[part.name] = torch.randint(0, most, part.shape, generator=generator).to(torch.uint8)
        elif part.dtype == "U16":  # no exponent of all ones: infinities and NaN are no weights
            packed[part.name] = torch.randint(0, 0x7800, part.shape, generator=generator).to(torch.uint16)
        else:
            packed[part.name] = torch.rand(part.shape, generator=generator).to(TORCH_DTYPES[part.dtype])
    return CompressedMatrix(config, shape, packed)


@pytest.fixture(scope="module")
def reader(repo: Path) -> SpecReader:
    return SpecReader((repo / "docs" / "format.md").read_text("utf-8"))


@pytest.mark.parametrize(("codebook", "bits"), [(name, b) for name, many in CODEBOOK_BITS.items() for b in many])
def test_every_codebook_reads_as_the_spec_says(reader: SpecReader, codebook: str, bits: int) -> None:
    ranks = (0,) if codebook in RANKLESS else (0, 5, 17)
    # rows of no, one and more tiles of the trellis; widths with a Hadamard part, an odd part, both, and a tail
    cases = (((20, 32), 4), ((12, 32), 4), ((18, 5), 4), ((131, 43), (16, 4)), ((129, 84), (4, 16)), ((300, 13), 8))
    for (shape, factor_bits), rank in itertools.product(cases, ranks):
        if rank > min(shape):
            continue
        states = {131: 4096, 300: 8192}.get(shape[0], 256)  # tables of both kinds
        config = CompressionConfig(
            b_q=bits, rank=rank, factor_bits=factor_bits, codebook=codebook, seed=bits + rank, states=states
        )
        matrix = random_matrix(config, shape)
        expected = reader.weight(matrix.blob().numpy().tobytes(), config.to_dict(), *shape)
        np.testing.assert_allclose(matrix.dequantize().numpy(), expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_a_whole_model_reads_as_the_spec_says(reader: SpecReader, qwen2: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(qwen2)
    menu = (
        CompressionConfig(b_q=3, rank=2, codebook="scalar", iterations=1),
        CompressionConfig(b_q=4, codebook="rtn"),
        CompressionConfig(b_q=2, rank=3, factor_bits=(8, 16), codebook="e8", seed=2**31 - 1, iterations=1),
    )
    items = {spec.key: menu[n % 3] for n, spec in enumerate(checkpoint.matrices())}
    write_packed_model(checkpoint, None, items, tmp_path / "packed")
    packed = PackedModel.open(tmp_path / "packed")
    weights = reader.read_file(tmp_path / "packed" / "model.safetensors")
    assert len(weights) == 21
    for name, expected in weights.items():
        got = packed.tensor(f"{name}.weight").numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6 * np.abs(expected).max(), err_msg=name)


def test_fused_matrices_in_several_files_read_as_the_spec_says(
    reader: SpecReader, make_family: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(make_family("phi3"))
    menu = (CompressionConfig(b_q=4, codebook="rtn"), CompressionConfig(b_q=16, codebook="raw"))
    items = {spec.key: menu[n % 2] for n, spec in enumerate(checkpoint.matrices())}
    write_packed_model(checkpoint, None, items, tmp_path / "packed", shard_bytes=1000)
    packed = PackedModel.open(tmp_path / "packed")
    weights = reader.read_directory(tmp_path / "packed")
    for module in {spec.module_name for spec in checkpoint.matrices()}:
        got = packed.tensor(f"{module}.weight").numpy()
        assert got.shape == checkpoint.tensors[f"{module}.weight"].shape
        np.testing.assert_allclose(got, weights[module], rtol=0, atol=1e-6, err_msg=module)
