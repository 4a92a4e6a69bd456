"""Rates: found again from times that they made, bounded where small matrices say nothing, and priced by the nearest."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError
from compress_core.plan.cards import CARDS, Card, estimated, find_card
from compress_core.plan.fitting import fit_terms
from compress_core.plan.operations import CEILINGS, FLOORS, Size, features
from compress_core.plan.rates import Observation, Rates, TermKey, Unpriced

PRODUCT = 1e11
SIZES = [Size(m, n) for m, n in ((128, 256), (512, 256), (256, 768), (512, 512), (256, 1536))]
#: seconds that a weight takes at each number of bits
WEIGHT_S = {2: 4e-6, 3: 6e-6, 4: 9e-6}


def true_seconds(size: Size, b_q: int) -> float:
    known = {"fixed": 0.02, "columns": 3e-5, "weights": WEIGHT_S[b_q], "products": 80 / PRODUCT}
    return sum(known[name] * value for name, value in features("start", size).items())


def observations(bits: tuple[int, ...] = (2, 3, 4)) -> Iterator[Observation]:
    for size in SIZES:
        for b_q in bits:
            yield Observation("start", size, true_seconds(size, b_q), "e8", b_q)


def test_times_are_found_again_and_large_ones_told() -> None:
    terms, uncertainty = fit_terms(observations(), PRODUCT)
    rates = Rates("cpu", "test", "measured", terms=terms)
    for b_q in (2, 3, 4):
        config = CompressionConfig(codebook="e8", b_q=b_q)
        for size in [*SIZES, Size(8192, 29568)]:
            assert rates.seconds("start", size, config) == pytest.approx(true_seconds(size, b_q), rel=0.02)
    assert uncertainty == pytest.approx(1.3)


@pytest.mark.parametrize("share", [0.01, 100.0])
def test_what_grows_stays_near_its_count(share: float) -> None:
    """Times of pure products that are far too fast, or far too slow: the coefficient stays between its bounds."""
    floor = FLOORS["start"]["products"] / PRODUCT
    timed = [Observation("start", s, share * floor * s.out_features * s.in_features**2, "e8", 2) for s in SIZES]
    terms, _ = fit_terms(timed, PRODUCT)
    found = terms[TermKey("start", "e8", 2)]["products"]
    assert floor * (1 - 1e-9) <= found <= floor * CEILINGS["products"] * (1 + 1e-9)


def test_times_that_fit_nothing_are_fitted_all_the_same() -> None:
    """A probe of a second on a busy machine: a few small matrices, whose times are mostly noise. An interior method
    divided by zero at some of these."""
    for seed in range(150):
        chance = random.Random(seed)
        found = [
            Observation("measure", Size(32 * n, 32), 10 ** chance.uniform(-5, -1), "e8", b)
            for b in (2, 3)
            for n in (1, 2)
        ]
        terms, _ = fit_terms(found, PRODUCT)
        for key, coefficients in terms.items():
            for name, value in coefficients.items():
                assert value >= FLOORS[key.kind].get(name, 0.0) / PRODUCT, (seed, name)


def test_scatter_is_uncertainty() -> None:
    noisy = [
        Observation(o.kind, o.size, o.seconds * (1.6 if i % 2 else 0.6), o.codebook, o.b_q)
        for i, o in enumerate(observations())
    ]
    assert fit_terms(noisy, PRODUCT)[1] > 1.6


def test_rates_survive_json() -> None:
    terms, _ = fit_terms(observations(), PRODUCT)
    rates = Rates("cpu", "test", "measured", terms=terms, busy=0.5, notes=("one",))
    assert Rates.from_dict(json.loads(json.dumps(rates.to_dict()))) == rates
    with pytest.raises(ConfigError):
        TermKey.parse("nothing:of:that")


def test_bits_that_were_not_measured_are_priced_as_the_nearest() -> None:
    terms, _ = fit_terms(observations((2, 4)), PRODUCT)
    rates = Rates("cpu", "test", "measured", terms=terms)
    size = SIZES[0]
    three, four = (CompressionConfig(codebook="e8", b_q=b_q) for b_q in (3, 4))
    assert rates.seconds("start", size, three) in {
        rates.seconds("start", size, CompressionConfig(codebook="e8", b_q=b_q)) for b_q in (2, 4)
    }
    assert rates.knows(four)
    assert not rates.knows(three)
    with pytest.raises(Unpriced, match="trellis"):
        rates.seconds("start", size, CompressionConfig(b_q=2))


def test_more_states_take_more_time() -> None:
    rates = Rates("cpu", "test", "measured", terms={TermKey("start", "trellis", 2, 1024): {"weights": 1e-6}})
    size = Size(100, 100)
    few, many = (CompressionConfig(b_q=2, states=states) for states in (1024, 4096))
    assert rates.seconds("start", size, many) == pytest.approx(4 * rates.seconds("start", size, few))


def test_a_newer_probe_wins_and_an_older_one_fills_in() -> None:
    start, rank = TermKey("start", "e8", 2), TermKey("rank", "e8", 2)
    older = Rates("cpu", "test", "measured", terms={start: {"fixed": 1.0}, rank: {"fixed": 2.0}})
    newer = Rates("cpu", "test", "measured", terms={start: {"fixed": 3.0}}, product=5.0)
    both = newer.merged(older)
    assert both.terms == {start: {"fixed": 3.0}, rank: {"fixed": 2.0}}
    assert both.product == 5.0


@pytest.mark.parametrize(
    ("asked", "found"),
    [("RTX 3090", "RTX 3090"), ("3090", "RTX 3090"), ("NVIDIA H100 80GB HBM3", "H100"), ("a100", "A100")],
)
def test_cards_are_found_by_what_people_call_them(asked: str, found: str) -> None:
    card = find_card(asked)
    assert card is not None
    assert card.name == found


def test_unknown_and_ambiguous_cards() -> None:
    assert find_card("GTX 1080") is None
    assert find_card(" ") is None
    with pytest.raises(ConfigError, match="RTX 3090, RTX 4090"):
        find_card("rtx")


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_an_estimate_prices_every_codebook_and_says_that_it_is_one(card: Card) -> None:
    rates = estimated(card)
    assert rates.source == "estimated"
    assert rates.uncertainty >= 2
    assert "nobody measured" in rates.notes[0]
    for codebook, b_q in (("e8", 2), ("trellis", 8), ("scalar", 5)):
        config = CompressionConfig(codebook=codebook, b_q=b_q, rank=64)
        size = Size(1536, 8960, 64)
        floor = FLOORS["start"]["products"] * 1536 * 8960**2 / card.float32
        assert rates.seconds("start", size, config) > floor
        assert rates.seconds("rank", size, config) > 0
