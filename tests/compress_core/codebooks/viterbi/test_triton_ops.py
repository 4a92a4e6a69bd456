"""The Triton kernel against the plain torch search: interpreted on the CPU, compiled for cards that are not here, and
run where there is one."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress_core.codebooks.viterbi import states_of, torch_ops

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

Search = Callable[..., Tensor]

#: (bits, log states, weights of a tile): odd lengths, one overlap, a state longer than the tile, more than one chunk
SIZES = [(2, 8, 64), (3, 8, 33), (4, 4, 9), (8, 8, 5), (5, 10, 21), (2, 12, 40), (2, 14, 9), (2, 15, 9)]

#: (bits, states) to compile
KERNELS = [(2, 1 << 8), (2, 1 << 12), (4, 1 << 12), (2, 1 << 14), (2, 1 << 16), (8, 1 << 16)]
_COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from compress_core.codebooks.viterbi import triton_ops

names = triton_ops._search.arg_names
types = {"symbols_ptr": "*u8", "back_ptr": "*u8"}
signature = {
    name: "constexpr" if name.isupper() else types.get(name, "*fp32") if name.endswith("_ptr") else "i32"
    for name in names
}
capability, *sizes = (int(word) for word in sys.argv[1:])
for bits, states in zip(sizes[::2], sizes[1::2], strict=True):
    resident = states <= triton_ops.RESIDENT_STATES
    overlaps = states >> bits
    chunk = min(overlaps, triton_ops._CHUNK)
    values = dict(WEIGHTED=True, BITS=bits, OVERLAPS=overlaps, CHUNK=chunk, RESIDENT=resident)
    constants = {(names.index(name),): value for name, value in values.items()}
    options = dict(num_warps=triton_ops._warps(states, bits, resident), enable_fp_fusion=True)
    source = ASTSource(triton_ops._search, signature, constants)
    print(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared)
"""


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Search]:
    """The launch in Triton's interpreter, which a process has to choose before it imports Triton."""
    from compress_core.codebooks.viterbi.triton_ops import _launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield lambda *args, **kwargs: pool.submit(_launch, *args, **kwargs).result()


def _tiles(tiles: int, length: int, log_states: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles, a table and weights."""
    g = torch.Generator().manual_seed(seed)
    x_NT = torch.randn(tiles, length, generator=g)
    return x_NT, torch.randn(1 << log_states, generator=g), torch.rand(tiles, length, generator=g).pow(3)


def _costs(symbols_NT: Tensor, x_NT: Tensor, table_S: Tensor, bits: int, weight_NT: Tensor | None = None) -> Tensor:
    value_NT = table_S[states_of(symbols_NT, bits, table_S.numel().bit_length() - 1).long()]
    return ((x_NT - value_NT).square() * (1 if weight_NT is None else weight_NT)).sum(1)


@pytest.mark.parametrize("resident", [True, False], ids=["registers", "scratch"])
@pytest.mark.parametrize(("bits", "log_states", "length"), SIZES)
def test_costs_are_those_of_the_plain_search(
    interpreted: Search, bits: int, log_states: int, length: int, resident: bool
) -> None:
    x_NT, table_S, _ = _tiles(2, length, log_states)
    symbols_NT = interpreted(x_NT, table_S, bits, resident=resident)
    assert symbols_NT.dtype == torch.uint8
    assert int(symbols_NT.max()) < 1 << bits
    expected_N = _costs(torch_ops.viterbi(x_NT, table_S, bits), x_NT, table_S, bits)
    torch.testing.assert_close(_costs(symbols_NT, x_NT, table_S, bits), expected_N, rtol=1e-5, atol=0)


@pytest.mark.parametrize("resident", [True, False], ids=["registers", "scratch"])
def test_weighted_errors(interpreted: Search, resident: bool) -> None:
    x_NT, table_S, weight_NT = _tiles(3, 48, 8)
    symbols_NT = interpreted(x_NT, table_S, 2, weight_NT, resident=resident)
    expected_N = _costs(torch_ops.viterbi(x_NT, table_S, 2, weight_NT), x_NT, table_S, 2, weight_NT)
    costs_N = _costs(symbols_NT, x_NT, table_S, 2, weight_NT)
    torch.testing.assert_close(costs_N, expected_N, rtol=1e-5, atol=0)
    unweighted_N = _costs(torch_ops.viterbi(x_NT, table_S, 2), x_NT, table_S, 2, weight_NT)
    assert bool((costs_N < 0.9 * unweighted_N).all())


@pytest.mark.parametrize("resident", [True, False], ids=["registers", "scratch"])
@pytest.mark.parametrize("scratch_bytes", [1, 3000])
def test_programs_that_take_turns_give_the_same_bytes(interpreted: Search, resident: bool, scratch_bytes: int) -> None:
    x_NT, table_S, _ = _tiles(5, 12, 8)
    alone_NT = torch.cat([interpreted(x_T, table_S, 2, resident=resident) for x_T in x_NT.split(1)])
    turns_NT = interpreted(x_NT, table_S, 2, resident=resident, scratch_bytes=scratch_bytes)
    assert torch.equal(turns_NT, alone_NT)


def test_any_strides_and_precision(interpreted: Search) -> None:
    x_NT, table_S, _ = _tiles(3, 16, 6)
    x_NT, table_S = x_NT.half(), table_S.half()
    expected_NT = interpreted(x_NT.float(), table_S.float(), 2, resident=True)
    strided_NT = x_NT.T.contiguous().T
    assert torch.equal(interpreted(strided_NT, table_S, 2, resident=True), expected_NT)


def test_a_huge_weight_spoils_no_other(interpreted: Search) -> None:
    x_NT, table_S, _ = _tiles(1, 32, 8)
    x_NT[0, 5] = 3e38
    symbols_NT = interpreted(x_NT, table_S, 2, resident=True)
    assert torch.equal(symbols_NT, torch_ops.viterbi(x_NT, table_S, 2))


def test_no_tiles(interpreted: Search) -> None:
    assert interpreted(torch.empty(0, 16), torch.randn(256), 2, resident=True).shape == (0, 16)


def test_tiles_too_short_to_walk_are_tried_in_all_ways() -> None:
    from compress_core.codebooks.viterbi.triton_ops import viterbi_triton

    x_NT, table_S, _ = _tiles(4, 3, 12)  # 6 bits where two states share 10
    costs_N = _costs(viterbi_triton(x_NT, table_S, 2), x_NT, table_S, 2)
    every_MT = torch.cartesian_prod(*[torch.arange(4, dtype=torch.uint8)] * 3)
    for x_T, cost in zip(x_NT, costs_N, strict=True):
        assert cost == _costs(every_MT, x_T, table_S, 2).min()


@pytest.mark.parametrize("capability", [86, 90])
def test_compiles_for_a_card_that_is_not_here(repo: Path, tmp_path: Path, capability: int) -> None:
    """The interpreter takes Python that the compiler refuses."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    sizes = [str(number) for kernel in KERNELS for number in kernel]
    command = [sys.executable, "-c", _COMPILE, str(capability), *sizes]
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shared = [int(line) for line in done.stdout.split()]
    assert len(shared) == len(KERNELS)
    assert max(shared) <= 48 * 1024  # what every card has without asking


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("bits", "log_states"), [(2, 8), (2, 12), (3, 12), (4, 12), (8, 12), (2, 14), (2, 16), (4, 16)]
)
def test_costs_on_a_card(bits: int, log_states: int, weighted: bool) -> None:
    from compress_core.codebooks.viterbi.triton_ops import viterbi_triton

    x_NT, table_S, weight_NT = (tensor.cuda() for tensor in _tiles(40, 256, log_states))
    weights = weight_NT if weighted else None
    symbols_NT = viterbi_triton(x_NT, table_S, bits, weights)
    expected_N = _costs(torch_ops.viterbi(x_NT, table_S, bits, weights), x_NT, table_S, bits, weights)
    # fused multiplications round differently, and a path that is as good may win
    torch.testing.assert_close(_costs(symbols_NT, x_NT, table_S, bits, weights), expected_N, rtol=1e-3, atol=0)
    assert torch.equal(symbols_NT, viterbi_triton(x_NT, table_S, bits, weights))


@needs_cuda
@pytest.mark.gpu
def test_both_homes_of_the_costs_give_the_same_bytes_on_a_card() -> None:
    from compress_core.codebooks.viterbi.triton_ops import _launch

    x_NT, table_S, _ = (tensor.cuda() for tensor in _tiles(300, 200, 12))
    registers_NT = _launch(x_NT, table_S, 2, resident=True)
    scratch_NT = _launch(x_NT, table_S, 2, resident=False, scratch_bytes=20 * 1024 * 208)
    costs_N, expected_N = (_costs(s_NT, x_NT, table_S, 2) for s_NT in (scratch_NT, registers_NT))
    torch.testing.assert_close(costs_N, expected_N, rtol=1e-3, atol=0)


@needs_cuda
@pytest.mark.gpu
def test_nothing_waits_for_the_host() -> None:
    from compress_core.codebooks.viterbi.triton_ops import viterbi_triton

    x_NT, table_S, _ = (tensor.cuda() for tensor in _tiles(8, 64, 10))
    viterbi_triton(x_NT, table_S, 2)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        viterbi_triton(x_NT, table_S, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
