"""The trellis search: what it finds is the best path through its seam, on every kernel, and its bits are cyclic."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compress_core.codebooks.viterbi import cpu, states_of, torch_ops, viterbi

Search = Callable[..., Tensor]
SEARCHES = [pytest.param(cpu.viterbi, id="numba"), pytest.param(torch_ops.viterbi, id="torch")]
#: (bits, log states, weights): every order of loops, every short tile, tiles with and without a free window
SIZES = [
    *((2, 8, 256), (2, 11, 300), (2, 3, 17), (3, 8, 50), (3, 9, 64), (3, 12, 31), (3, 5, 20), (4, 8, 64), (4, 11, 40)),
    *((5, 8, 40), (6, 12, 24), (7, 10, 33), (8, 8, 20), (8, 11, 16), (8, 12, 64), (1, 6, 40)),
    *((2, 8, 1), (2, 8, 2), (2, 8, 3), (2, 8, 4), (2, 12, 5), (3, 8, 1), (5, 12, 1), (5, 12, 2), (8, 12, 1)),
]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def costs(x_NT: Tensor, symbols_NT: Tensor, table_S: Tensor, bits: int, weight_NT: Tensor | None = None) -> Tensor:
    log_states = table_S.numel().bit_length() - 1
    error_NT = (table_S[states_of(symbols_NT, bits, log_states).long()] - x_NT).double().square()
    return (error_NT if weight_NT is None else error_NT * weight_NT).sum(1)


def test_states_are_the_last_bits_of_a_cyclic_stream() -> None:
    symbols = torch.randint(0, 8, (3, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for log_states in (3, 8, 16):
        states = states_of(symbols, 3, log_states)
        for n, t in itertools.product(range(3), range(5)):
            # wound around the tile as often as the state needs
            stream = "".join(f"{int(symbols[n, i % 5]):03b}" for i in range(t - 10, t + 1))
            assert f"{int(states[n, t]):0{log_states}b}" == stream[-log_states:]


@pytest.mark.parametrize(("bits", "log_states", "length"), SIZES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_numba_finds_what_plain_torch_finds(bits: int, log_states: int, length: int, weighted: bool) -> None:
    table, x = gaussian(2**log_states, seed=5), gaussian(9, length)
    weight = uniform(9, length) if weighted else None
    found = [
        costs(x, search(x, table, bits, weight), table, bits, weight) for search in (cpu.viterbi, torch_ops.viterbi)
    ]
    assert torch.allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(
    ("bits", "log_states", "length"),
    [(2, 4, 7), (2, 4, 8), (2, 5, 7), (3, 5, 5), (1, 4, 14), (4, 8, 3), (3, 6, 1), (2, 8, 3)],
)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_no_path_through_the_same_seam_is_better(
    search: Search, bits: int, log_states: int, length: int, weighted: bool
) -> None:
    table, x = gaussian(2**log_states, seed=3), gaussian(20, length)
    weight = uniform(20, length) if weighted else torch.ones(20, length)
    every = torch.tensor(list(itertools.product(range(2**bits), repeat=length)), dtype=torch.uint8)
    states = states_of(every, bits, log_states).long()
    cost_NM = ((table[states] - x[:, None]).double().square() * weight[:, None]).sum(-1)
    symbols = search(x, table, bits, weight)
    found = costs(x, symbols, table, bits, weight)
    seam_M = states[:, -1] & (2 ** (log_states - bits) - 1)
    seam_N = states_of(symbols, bits, log_states)[:, -1].long() & (2 ** (log_states - bits) - 1)
    same = seam_N[:, None] == seam_M
    assert torch.allclose(found, cost_NM.masked_fill(~same, float("inf")).amin(1), rtol=1e-5)
    # the seam itself is a good guess, seldom the best one
    assert found.mean() <= 1.25 * cost_NM.amin(1).mean()


def test_a_single_weight_gets_the_nearest_of_its_values() -> None:
    table, x = gaussian(256), gaussian(30, 1)
    values = table[[int(f"{s:02b}" * 4, 2) for s in range(4)]]
    assert torch.equal(viterbi(x, table, 2)[:, 0].long(), (x - values).abs().argmin(1))


def test_without_memory_each_weight_gets_its_nearest_value() -> None:
    table, x = gaussian(256), gaussian(4, 50)
    nearest = (x[..., None] - table).abs().argmin(-1)
    assert torch.equal(viterbi(x, table, 8).long(), nearest)


@pytest.mark.parametrize("search", SEARCHES)
def test_weights_that_count_for_nothing_are_free(search: Search) -> None:
    table, x = gaussian(1024, seed=5), gaussian(6, 64)
    weight = (torch.arange(64) % 2 == 0).float().expand(6, 64)
    all_same = costs(x, search(x, table, 2), table, 2, weight)
    half = costs(x, search(x, table, 2, weight), table, 2, weight)
    assert (half < 0.5 * all_same).all()
    nothing = search(x, table, 2, torch.zeros(6, 64))
    assert torch.equal(nothing, search(x, table, 2))


def test_weights_have_no_unit() -> None:
    table, x, weight = gaussian(1024, seed=5), gaussian(6, 64), uniform(6, 64)
    assert torch.equal(viterbi(x, table, 3, weight), viterbi(x, table, 3, weight * 2.0**40))


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("value", [0.0, 1e6, -1e30, float("inf")])
def test_far_weights_get_symbols_too(search: Search, value: float) -> None:
    table = gaussian(256, seed=5)
    x = gaussian(3, 40)
    x[1] = value
    x[2, 7] = value
    symbols = search(x, table, 2)
    assert int(symbols.max()) < 4
    assert torch.equal(symbols[0], search(x[:1], table, 2)[0])


def test_threads_do_not_change_bytes() -> None:
    table, x = gaussian(256, seed=5), gaussian(37, 256)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(viterbi(x, table, 2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_tiles_do_not_change_each_other() -> None:
    table, x = gaussian(1024, seed=5), gaussian(5, 64)
    together = viterbi(x, table, 3)
    for n in range(5):
        assert torch.equal(viterbi(x[n : n + 1], table, 3)[0], together[n])


def test_what_is_no_tile_or_trellis_is_refused() -> None:
    x = gaussian(2, 8)
    assert viterbi(x[:0], gaussian(256), 2).shape == (0, 8)
    for tiles, table, bits in (
        (x[0], gaussian(256), 2),
        (x, gaussian(200), 2),
        (x, gaussian(256), 9),
        (x, gaussian(2), 2),
    ):
        with pytest.raises(ValueError, match=r"tiles must be|cannot be"):
            viterbi(tiles, table, bits)
    with pytest.raises(ValueError, match="do not fit"):
        viterbi(x, gaussian(256), 2, torch.ones(2, 7))
