"""Prices of steps: counts, bytes and seconds that can be told by hand, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from compress_core.config import CompressionConfig
from compress_core.plan import Machine, ModelShapes, Pricer, Rates, StepPrice, judge
from compress_core.plan.cards import estimated, find_card
from compress_core.plan.rates import TermKey
from compress_core.plan.verdict import disk_needed

HIDDEN, FFN, LAYERS, VOCAB = 32, 48, 2, 100
GRID = [CompressionConfig(codebook="e8", b_q=b_q, rank=rank) for b_q in (2, 3, 4) for rank in (0, 4, 8)]


def shapes(**fields: object) -> ModelShapes:
    config: Mapping[str, object] = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": FFN,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    return ModelShapes.from_config({**config, **fields}, "tiny", "test")


def unit_rates(**terms: float) -> Rates:
    """Each piece of work takes a fixed time; everything else takes none."""
    kinds = {"input": 0.0, "matrix": 0.0, "measure": 0.0, "rtn": 0.0, "feedback": 0.0, "start": 0.0, "rank": 0.0}
    found = {}
    for kind, seconds in (kinds | terms).items():
        codebook = "e8" if kind in ("feedback", "start", "rank") else ""
        bits = (2, 3, 4) if kind in ("start", "rank") else (0,)
        found |= {TermKey(kind, codebook, b_q): {"fixed": seconds} for b_q in bits}  # type: ignore[arg-type]
    never = float("inf")
    return Rates(
        "cpu", "unit", "measured", terms=found,
        product=never, forward=never, logits=never, disk_read=never, disk_write=never,
    )  # fmt: skip


def pricer(**terms: float) -> Pricer:
    return Pricer(shapes(), unit_rates(**terms))


def test_a_sweep_counts_every_cell_once() -> None:
    price = pricer().sweep([*GRID, GRID[0]])
    assert (price.count, price.unit) == (14 * 9, "matrix × config")
    # ranks cut to the least side of k and v, 16, become equal there
    cut = pricer().sweep([CompressionConfig(codebook="e8", b_q=2, rank=rank) for rank in (16, 24)])
    assert cut.count == 14 * 2 - 2 * LAYERS


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        ("input", 4 * LAYERS),  # q, k and v share one input, gate and up another
        ("feedback", 4 * LAYERS),
        ("matrix", 14),
        ("start", 14 * 3),  # one for all ranks
        ("rank", 14 * 6),
        ("rtn", 14),
        ("measure", 14 * (10 + 1)),  # W itself once
    ],
)
def test_a_sweep_pays_for_what_is_shared_once(kind: str, times: int) -> None:
    configs = [*GRID, CompressionConfig(codebook="rtn", b_q=2)]
    assert pricer(**{kind: 1.0}).sweep(configs).seconds == pytest.approx(times)


def test_what_the_database_measured_takes_the_place_of_the_probe() -> None:
    config = GRID[0]
    known = {(HIDDEN, HIDDEN, config.config_hash): 100.0}
    priced = Pricer(shapes(), unit_rates(start=1.0), known)
    # q and o of both layers are square
    assert priced.sweep([config]).seconds == pytest.approx(4 * 100 + 10)
    assert priced.n_known == 4


def test_an_unmeasured_codebook_has_no_price_and_is_named() -> None:
    priced = pricer(start=1.0)
    price = priced.sweep([CompressionConfig(b_q=2)])
    assert (price.seconds, price.count) == (None, 14)
    assert priced.unpriced == {"trellis at 2 bits"}
    assert Pricer(shapes(), None).sweep(GRID).seconds is None


def test_a_sensitivity_runs_the_layers_from_the_changed_one_on() -> None:
    anchors = GRID[:1]
    rates = replace(unit_rates(), forward=1.0)
    seconds = Pricer(shapes(), rates).sensitivity(anchors, 2, 16).seconds
    tokens, weights = 32, shapes().n_weights / LAYERS
    layer, head = tokens * (2 * weights + 4 * 16 * HIDDEN), 2 * tokens * VOCAB * HIDDEN
    # 7 matrices of layer 0 run two layers, 7 of layer 1 one; each the head; and once the original
    alone = 7 * (2 + 1) * layer + 14 * head + 2 * layer + head
    # in company: the original, all compressed, and each of two layers restored from there on; each the head
    company = (2 + 2 + 2 + 1) * layer + 4 * head
    assert seconds == pytest.approx(alone + company)


def test_other_methods_cost_their_passes_alone() -> None:
    priced = Pricer(shapes(), replace(unit_rates(start=5.0), forward=1.0))
    plain, noisy, graded = (
        priced.sensitivity(GRID[:1], 2, 16, noises=noises, gradients=gradients).seconds or 0.0
        for noises, gradients in ((0, 0), (1, 0), (0, 1))
    )
    assert noisy - plain < plain - 14 * 5.0
    tokens, weights = 32, shapes().n_weights
    once = tokens * (2 * weights + 4 * 16 * HIDDEN * LAYERS) + 2 * tokens * VOCAB * HIDDEN
    assert graded - plain == pytest.approx(3 * once)


def test_a_calibration_stores_halves_or_nothing() -> None:
    halves = LAYERS * sum(4 * width * (width + 1) // 2 for width in (HIDDEN, HIDDEN, HIDDEN, FFN))
    stored, tokens = (pricer().calibrate(4, 16, keeps_hessians=keeps) for keeps in (True, False))
    assert stored.disk - tokens.disk == halves
    assert tokens.seconds == 0


def test_tokens_alone_cost_a_forward_pass_in_every_job() -> None:
    priced = Pricer(shapes(), replace(unit_rates(), forward=1e6))
    once = priced.calibrate(4, 16).seconds
    assert once is not None
    for stored, observed in (
        (priced.sweep(GRID), priced.sweep(GRID, observed_tokens=64, length=16)),
        (priced.compress(GRID, 0), priced.compress(GRID, 0, observed_tokens=64, length=16)),
    ):
        assert stored.seconds is not None
        assert observed.seconds == pytest.approx(stored.seconds + once)


def test_a_compression_takes_the_mean_of_its_menu() -> None:
    menu = [GRID[0], GRID[1]]  # rank 0, and a rank beside its start
    assert pricer(start=1.0, rank=2.0).compress(menu, 10).seconds == pytest.approx(14 * (1 + 3) / 2)
    assert pricer().compress(menu, 10).disk == 10


def test_a_validation_decomposes_each_cell_once_and_runs_every_allocation() -> None:
    cells = pricer(start=1.0, rank=2.0).validate([GRID[0], GRID[1]], 2, 20, 2, 16)
    assert (cells.count, cells.unit) == (20, "allocations")
    assert cells.seconds == pytest.approx(14 * (1 + 2))  # a rank shares the start
    # where a matrix has at most one of them, the mean of the menu
    assert pricer(start=1.0, rank=2.0).validate([GRID[0], GRID[1]], 1, 20, 2, 16).seconds == pytest.approx(14 * 2)
    runs = Pricer(shapes(), replace(unit_rates(), forward=1.0)).validate(GRID, 9, 3, 2, 16).seconds
    tokens, weights = 32, shapes().n_weights
    once = tokens * (2 * weights + 4 * 16 * HIDDEN * LAYERS) + 2 * tokens * VOCAB * HIDDEN
    assert runs == pytest.approx((3 + 1) * once)


def test_hidden_states_of_many_allocations_wait_on_the_disk() -> None:
    wide = Pricer(shapes(hidden_size=8192, intermediate_size=29568, num_attention_heads=64), None)
    few, many = (wide.validate(GRID, 9, n, 16, 2048) for n in (2, 24))
    assert few.scratch == 0
    assert many.scratch == 2 * 25 * 4 * 16 * 2048 * 8192
    assert few.memory is not None
    assert many.memory is not None
    assert many.memory < few.memory + (4 << 30)


def test_memory_is_the_promise_of_the_largest_matrix() -> None:
    on_card = Pricer(shapes(hidden_size=8192, intermediate_size=29568, num_attention_heads=64), None, on_card=True)
    price = on_card.sweep(GRID)
    promise = 4 * (4 * 8192 * 29568 + 3 * 29568**2)
    assert price.device_memory is not None
    assert promise < price.device_memory < promise + 10**9
    assert "8192 × 29568" in str(price.largest)
    on_cpu = Pricer(on_card.shapes, None).sweep(GRID)
    assert on_cpu.device_memory is None
    assert on_cpu.memory is not None
    assert on_cpu.memory > promise


def test_a_layer_is_what_counts_not_the_number_of_layers() -> None:
    few, many = (Pricer(shapes(num_hidden_layers=n), None) for n in (2, 20))
    for first, second in (
        [p.calibrate(4, 16) for p in (few, many)],
        [p.evaluate(4, 16, packed=True) for p in (few, many)],
        [p.sensitivity(GRID[:1], 4, 16) for p in (few, many)],
    ):
        assert first.memory == pytest.approx(second.memory, rel=1e-4)  # norms alone


def test_what_fits_is_not_complained_about() -> None:
    steps = [pricer().sweep(GRID), pricer().compress(GRID, 1000)]
    assert judge(steps, Machine(memory=2 * 10**9, disk=1000)) == []
    assert judge(steps, Machine()) == []


@pytest.mark.parametrize(
    ("step", "machine", "what", "cure"),
    [
        (StepPrice("sensitivity", "", 1, None, device_memory=30), Machine(device_memory=24), "card memory", "error"),
        (StepPrice("sweep", "", 1, None, memory=30), Machine(memory=24), "memory", "4 W \\+ 3 H"),
        (StepPrice("calibrate", "", 1, None, disk=20, scratch=10), Machine(disk=29), "disk", "keep: tokens"),
        (StepPrice("compress", "", 1, None, disk=30), Machine(disk=29), "disk", "budgets"),
    ],
)
def test_what_does_not_fit_is_named_with_its_cure(step: StepPrice, machine: Machine, what: str, cure: str) -> None:
    (finding,) = judge([step], machine)
    assert finding.what == what
    assert finding.needed == 30
    assert re.search(cure, str(finding))


def test_scratch_of_steps_after_each_other_is_not_added_up() -> None:
    steps = [StepPrice("calibrate", "", 1, None, disk=5, scratch=10), StepPrice("evaluate", "", 1, None, scratch=7)]
    assert disk_needed(steps) == 15


def test_a_7b_fits_a_3090() -> None:
    card = find_card("RTX 3090")
    assert card is not None
    seven = shapes(
        hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4,
        num_hidden_layers=28, vocab_size=152064, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    priced = Pricer(seven, estimated(card), on_card=True)
    machine = Machine(device_memory=card.memory)
    steps = [priced.calibrate(256, 2048), priced.sweep(GRID), priced.compress(GRID, 10**9),
             priced.evaluate(150, 2048, packed=True), priced.sensitivity(GRID[:2], 8, 2048)]  # fmt: skip
    assert judge(steps, machine) == []


def test_far_larger_matrices_make_a_plan_less_certain() -> None:
    timed = replace(unit_rates(), largest=HIDDEN * FFN)
    near = Pricer(shapes(), timed)
    far = Pricer(shapes(hidden_size=512, num_attention_heads=8), timed)
    assert near.extrapolates is None
    assert far.extrapolates is not None
    assert (near.uncertainty, far.uncertainty) == (1.3, 2.0)
