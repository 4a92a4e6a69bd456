"""Descent never raises the objective, whatever the codebook, the shape and the Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from compress_core.codebooks import Codebook, codebook_for, get_codebook
from compress_core.descent import descend, make_curvature
from compress_core.ldlq import Rounded, ldlq, make_feedback
from compress_core.rooted_hessian import RootedHessian

CPU = torch.device("cpu")
BOOKS = [("scalar", 2), ("scalar", 5), ("e8", 2), ("e8", 3), ("trellis", 2), ("trellis", 4)]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def full(width: int) -> Tensor:
    x = gaussian(3 * width, width) * torch.linspace(0.2, 3, width)
    x = x + 2 * x.roll(1, 1) + x[:, :1]
    return x.T @ x / x.shape[0]


def dead_inputs(width: int) -> Tensor:
    alive = (torch.arange(width) % 3 > 0).float()
    return full(width) * alive * alive[:, None]


def top_root(h: Tensor, rank: int) -> Tensor:
    """C (I, rank), where C Cᵀ is the part of H in its leading eigenvectors."""
    values, vectors = torch.linalg.eigh(h.double())
    return (vectors * values.sqrt())[:, -rank:].float()


HESSIANS: dict[str, Callable[[int], Tensor]] = {
    "full": full,
    "rank 1": lambda width: torch.outer(gaussian(width), gaussian(width)),
    "dead inputs": dead_inputs,
    "one loud input": lambda width: full(width) + 1e5 * torch.diag((torch.arange(width) == width // 2).float()),
}


@dataclass(frozen=True)
class Descent:
    """A weight, its Hessian and scales, at a codebook; the rows may be several candidates below each other."""

    w_OI: Tensor
    h_II: Tensor
    book: Codebook
    tail: Codebook
    scale_O: Tensor
    candidates: int = 1
    #: C: the objective is tr(D (H − C Cᵀ) Dᵀ)
    corrected_Ir: Tensor | None = None

    @classmethod
    def make(cls, name: str, bits: int, w_OI: Tensor, h_II: Tensor, scale_O: Tensor, candidates: int = 1) -> Descent:
        book = codebook_for(w_OI.shape[0] // candidates, name, bits, CPU, 256)
        return cls(w_OI, h_II, book, get_codebook("scalar", bits, CPU) if name == "e8" else book, scale_O, candidates)

    def start(self) -> Rounded:
        """Rounding that knows no Hessian."""
        plain = make_feedback(torch.eye(self.w_OI.shape[1], dtype=torch.float64), self.book.block)
        return ldlq(self.w_OI, plain, self.book, self.tail, self.scale_O, self.candidates)

    def step(self, found: Rounded) -> Rounded:
        """One pass."""
        root = RootedHessian(self.h_II, self.h_II.diagonal())  # descent wants no root
        curvature = make_curvature(root, self.book.block, self.corrected_Ir)
        return descend(self.w_OI, found, curvature, self.book, self.tail, self.candidates)

    def objectives(self, found: Rounded) -> Tensor:
        """The objective of the rows that share codewords, float64 (candidates, rows)."""
        d = (self.w_OI - found.value_OI).double()
        h_II = self.h_II.double()
        if self.corrected_Ir is not None:
            h_II = h_II - self.corrected_Ir.double() @ self.corrected_Ir.double().T
        return self.book.unit_sums(((d @ h_II) * d).sum(1).reshape(self.candidates, -1))


@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize(("name", "bits"), BOOKS)
def test_no_pass_raises_the_objective(name: str, bits: int, hessian: str) -> None:
    for rows, width in ((40, 64), (17, 171), (3, 13), (150, 9), (20, 5), (1, 2)):
        h = HESSIANS[hessian](width)
        case = Descent.make(name, bits, gaussian(rows, width), h, torch.linspace(0.7, 1.4, rows))
        found = case.start()
        slack = 1e-6 * float(h.diagonal().max()) * width
        for _ in range(3):
            before = case.objectives(found)
            found = case.step(found)
            assert (case.objectives(found) <= (1 + 1e-5) * before + slack).all(), (rows, width)


@pytest.mark.parametrize(("name", "bits"), BOOKS)
def test_nor_where_lr_corrects_some_directions(name: str, bits: int) -> None:
    """What is left of H is singular, and known only as a difference."""
    rows, width = 33, 137
    h = full(width)
    for rank in (1, 40):
        case = Descent.make(name, bits, gaussian(rows, width), h, torch.linspace(0.7, 1.4, rows))
        case = replace(case, corrected_Ir=top_root(h, rank))
        found = case.start()
        first = case.objectives(found)
        for _ in range(3):
            before = case.objectives(found)
            found = case.step(found)
            assert (case.objectives(found) <= (1 + 1e-5) * before + 1e-4 * float(h.diagonal().mean())).all()
        assert case.objectives(found).mean() < 0.9 * first.mean()


@pytest.mark.parametrize(("name", "bits"), BOOKS)
def test_passes_pay(name: str, bits: int) -> None:
    case = Descent.make(name, bits, gaussian(48, 66), full(66), torch.ones(48))
    start = case.start()
    found = case.step(case.step(case.step(start)))
    assert case.objectives(found).mean() < 0.8 * case.objectives(start).mean()


@pytest.mark.parametrize(("name", "bits"), BOOKS)
def test_descent_ends_where_no_block_gains(name: str, bits: int) -> None:
    case = Descent.make(name, bits, gaussian(24, 21), full(21), torch.ones(24))
    found = case.start()
    for _ in range(40):
        last, found = found, case.step(found)
    assert torch.equal(found.parts_PIO, last.parts_PIO)
    assert torch.equal(found.value_OI, last.value_OI)


@pytest.mark.parametrize(("name", "bits"), BOOKS)
def test_candidates_descend_on_their_own(name: str, bits: int) -> None:
    """Rows of several candidates below each other give what each gives alone."""
    rows, width = 140, 27
    w, h = gaussian(rows, width), full(width)
    scale_CO = torch.linspace(0.7, 1.4, rows) * torch.tensor([0.8, 1.0, 1.3])[:, None]
    case = Descent.make(name, bits, w.repeat(3, 1), h, scale_CO.reshape(-1), candidates=3)
    start = case.start()
    after = case.objectives(case.step(start))
    assert (after <= (1 + 1e-5) * case.objectives(start)).all()
    for candidate, scale_O in enumerate(scale_CO):
        alone = Descent.make(name, bits, w, h, scale_O)
        # sums of another shape may flip a tie
        assert torch.allclose(alone.objectives(alone.step(alone.start()))[0], after[candidate], rtol=0.05)


@pytest.mark.parametrize(("name", "bits"), BOOKS)
def test_what_comes_back_is_made_of_codewords(name: str, bits: int) -> None:
    scale_O = torch.linspace(0.7, 1.4, 30)
    case = Descent.make(name, bits, gaussian(30, 24), full(24), scale_O)
    found, book = case.step(case.start()), case.book
    stages, columns, rows = found.parts_PIO.shape
    blocks = found.parts_PIO.reshape(stages, columns // book.block, book.block, rows).permute(1, 0, 3, 2)
    values = torch.cat([book.decode(book.codes(block.contiguous())) for block in blocks], dim=1)
    assert torch.equal(values, found.parts_PIO.sum(0).T)
    assert torch.equal(found.value_OI, values * scale_O[:, None])
