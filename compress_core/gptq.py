"""GPTQ with one scale a row: the stronger of the two baselines.

GPTQ (arXiv 2210.17323, alg. 1) rounds columns one after another and lets later columns make up for each one's error.
Here, as in its public implementations, H gets 1 % of its mean diagonal as damping, and columns are taken either in
their own order or by descending diag(H) ("act-order"; with a scale a row the order needs no storage). Weights stay in
their natural basis; grid and bytes are those of round-to-nearest (compress_core.codebooks.rtn).

Rows are independent, so each row keeps what serves its own error d H dᵀ on the raw H best: one of the two orders, and
one of sixteen steps around absmax/2^(b−1), which is what clips outliers. Public implementations search the step by
the plain error, if at all; and some store a zero point a row, for which this finer search makes up: see
benchmarks/real_matrices.py.

Up to a width of EXACT_WIDTH H is factorised in float64; beyond, where a square is gigabytes, in float32, in place, and
for one order after the other: in memory are two squares and pieces of the weight.

Shapes: O = out_features, I = in_features, C = steps that are tried. w_OI, h_II; *_IR is transposed, R = C·O rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_core.cholesky import lower_factor_
from compress_core.codebooks.rtn import rtn_codes, rtn_scales, rtn_values
from compress_core.errors import CalibrationError
from compress_core.rooted_hessian import EXACT_WIDTH, factor_dtype, panels

#: what H gets on its diagonal, relative to its mean; the larger ones only where half precision made H indefinite
_DAMPING = (0.01, 0.1)
#: steps that are tried first, in sixteenths of an octave from the one that clips nothing
_COARSE = tuple(range(4, -36, -4))
#: … and then, from the one that was best
_FINE = (-3, -2, -1, 1, 2, 3)
#: rows at once; each is rounded at every step ratio side by side
_ROWS = 1024
#: … and of wide weights, so many entries
_WIDE_ENTRIES = 1 << 21
_NOT_SEMIDEFINITE = "the Hessian is not positive semidefinite, so it is no E[x xᵀ]: calibrate again"
#: columns between two updates of everything to the right
_PANEL = 64


def gptq(w_OI: Tensor, h_II: Tensor | None, bits: int) -> tuple[Tensor, Tensor]:
    """Codes int32 (O, I) and steps float16 (O,) of a finite float32 weight, as round-to-nearest stores them.

    Args:
        h_II: E[x xᵀ], finite; None or zero is the identity.

    Raises:
        CalibrationError: H is not positive semidefinite.
    """
    width = w_OI.shape[1]
    moment_II = _second_moment(h_II, w_OI)
    del h_II  # one that was loaded for this is let go of
    single_II = moment_II.to(torch.float32)
    natural_I = torch.arange(width, device=w_OI.device)
    descending_I = moment_II.diagonal().argsort(descending=True, stable=True)
    orders = [natural_I] if torch.equal(descending_I, natural_I) else [natural_I, descending_I]
    best: list[_Rounded] = []
    n_rows = _ROWS if width <= EXACT_WIDTH else max(1, _WIDE_ENTRIES // width)
    for order_I in orders:
        unit_II = _unit_of_order(moment_II, order_I)
        for number, rows_OI in enumerate(w_OI.split(n_rows)):
            whole_O = rtn_scales(rows_OI, bits).to(torch.float32)
            coarse = _best_step(rows_OI, _around(whole_O, _COARSE), order_I, unit_II, single_II, bits)
            fine = _best_step(rows_OI, _around(coarse.step_O, _FINE), order_I, unit_II, single_II, bits)
            best[number : number + 1] = [_best_rows([*best[number : number + 1], coarse, fine])]
        del unit_II  # before the other order makes another square
    codes_OI = torch.empty(w_OI.shape, dtype=torch.int32, device=w_OI.device)
    steps_O = torch.cat([rows.step_O for rows in best])
    for into_OI in codes_OI.split(n_rows):
        rows = best.pop(0)
        # levels lie in the middle of their cells, so that their codes are read off exactly
        into_OI.copy_(rtn_codes(rows.value_OI, rows.step_O, bits))
    return codes_OI, steps_O


def _unit_of_order(moment_II: Tensor, order_I: Tensor) -> Tensor:
    """U·diag(U)⁻¹ of H with its columns in this order; of a wide one, what is below the diagonal is of no use.

    Raises:
        CalibrationError: H is not positive semidefinite.
    """
    width = moment_II.shape[0]
    if width <= EXACT_WIDTH:
        return unit_feedback(moment_II[order_I][:, order_I])
    for damping in _DAMPING:
        square_II = torch.empty_like(moment_II)
        for at in panels(width):
            square_II[at] = moment_II[order_I[at]][:, order_I]
        square_II.diagonal().add_(damping)
        if lower_factor_(square_II):  # R = Uᵀ
            return square_II.div_(square_II.diagonal().clone()[:, None]).T
        del square_II  # before the next try makes another
    raise CalibrationError(_NOT_SEMIDEFINITE)


@dataclass(frozen=True)
class _Rounded:
    """Rounded rows, the float16 steps of their grids and their errors d H dᵀ."""

    value_OI: Tensor
    step_O: Tensor
    error_O: Tensor


def _around(step_O: Tensor, sixteenths: tuple[int, ...]) -> Tensor:
    """Steps float16 (C, O), 2^(1/16) apart in the units of ``sixteenths``."""
    return torch.stack([(step_O * 2 ** (k / 16)).clamp(max=65504.0).to(torch.float16) for k in sixteenths])


def _best_step(w_OI: Tensor, step_CO: Tensor, order_I: Tensor, unit_II: Tensor, h_II: Tensor, bits: int) -> _Rounded:
    """Round every row at each of its steps, columns in this order; each row keeps its best."""
    stacked_RI = w_OI.repeat(step_CO.shape[0], 1)
    value_RI = torch.empty_like(stacked_RI)
    value_RI[:, order_I] = round_in_order(stacked_RI[:, order_I], unit_II, nearest_level(step_CO.flatten(), bits))
    stacked_RI -= value_RI
    error_RO = ((stacked_RI @ h_II) * stacked_RI).sum(1)
    values, errors = value_RI.split(w_OI.shape[0]), error_RO.split(w_OI.shape[0])
    return _best_rows([_Rounded(*found) for found in zip(values, step_CO, errors, strict=True)])


def _best_rows(tries: list[_Rounded]) -> _Rounded:
    """Each row from the try in which its error is least."""
    best_O = torch.stack([one.error_O for one in tries]).argmin(0)
    value_OI, step_O, error_O = (torch.zeros_like(x) for x in (tries[0].value_OI, tries[0].step_O, tries[0].error_O))
    for number, one in enumerate(tries):
        here_O = best_O == number
        value_OI = torch.where(here_O[:, None], one.value_OI, value_OI)
        step_O = torch.where(here_O, one.step_O, step_O)
        error_O = torch.where(here_O, one.error_O, error_O)
    return _Rounded(value_OI, step_O, error_O)


def round_in_order(w_RI: Tensor, unit_II: Tensor, nearest: Callable[[Tensor], Tensor]) -> Tensor:
    """Round columns from first to last; each one's error reaches later columns through ``unit_II``.

    Args:
        unit_II: unit upper triangular: column k is rounded at w_k + Σ_{j<k} e_j·unit_jk, e = w − value.
        nearest: values (R,) next to targets (R,), on each row's own grid.
    """
    width = w_RI.shape[1]
    w_IR, unit_t_II = w_RI.T.contiguous(), unit_II.T.contiguous()
    target_IR, value_IR, error_IR = w_IR.clone(), torch.empty_like(w_IR), torch.empty_like(w_IR)
    for start in range(0, width, _PANEL):
        stop = min(start + _PANEL, width)
        for k in range(start, stop):
            target_R = torch.addmv(target_IR[k], error_IR[start:k].T, unit_t_II[k, start:k])
            value_IR[k] = nearest(target_R)
            torch.sub(w_IR[k], value_IR[k], out=error_IR[k])
        if stop < width:
            target_IR[stop:].addmm_(unit_t_II[stop:, start:stop], error_IR[start:stop])
    return value_IR.T


def nearest_level(step_R: Tensor, bits: int) -> Callable[[Tensor], Tensor]:
    """What :func:`round_in_order` needs: the levels of round-to-nearest's grid next to targets (R,)."""

    def nearest(target_R: Tensor) -> Tensor:
        return rtn_values(rtn_codes(target_R[:, None], step_R, bits), step_R, bits)[:, 0]

    return nearest


def _second_moment(h_II: Tensor | None, w_OI: Tensor) -> Tensor:
    """H in the dtype for factorising, symmetric, with mean diagonal 1; the identity for None and zero."""
    width = w_OI.shape[1]
    dtype, device = factor_dtype(width), w_OI.device
    if h_II is None or not any(bool(h_II[at].any()) for at in panels(width)):
        return torch.eye(width, dtype=dtype, device=device)
    mean = h_II.diagonal().to(device, torch.float64).mean()
    moment_II = torch.empty(width, width, dtype=dtype, device=device)
    for at in panels(width):
        rows_PI = h_II[at].to(device, torch.float64) + h_II[:, at].T.to(device, torch.float64)
        moment_II[at] = rows_PI / (2 * mean)
    return moment_II


def unit_feedback(h_II: Tensor) -> Tensor:
    """U·diag(U)⁻¹ float32 of H + 1 % = U Uᵀ, U upper triangular: what GPTQ takes from a factor of H⁻¹.

    Args:
        h_II: float64 with mean diagonal 1.

    Raises:
        CalibrationError: H is not positive semidefinite.
    """
    identity = torch.eye(h_II.shape[0], dtype=h_II.dtype, device=h_II.device)
    for damping in _DAMPING:
        lower_II, info = torch.linalg.cholesky_ex((h_II + damping * identity).flip(0, 1))
        if int(info) == 0:
            root_II = lower_II.flip(0, 1)
            return (root_II / root_II.diagonal()).to(torch.float32)
    raise CalibrationError(_NOT_SEMIDEFINITE)
