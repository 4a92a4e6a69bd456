"""Which form describes a sweep best: every form is fitted, and what it has not seen decides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress_core.errors import FitError
from compress_core.fit.error_fit import ErrorFit
from compress_core.fit.monotone import fit_monotone
from compress_core.fit.observation import ErrorObservation
from compress_core.fit.parametric import fit_additive, fit_log_linear, fit_multiplicative
from compress_core.fit.spectrum import Spectra

FloatArray = NDArray[np.float64]
#: from the simplest: of forms that predict equally well the earlier one is taken
FORMS = ("log_linear", "multiplicative", "additive", "monotone")
#: the plan's: below it a parametric form gives way to interpolation
NEEDED_R2 = 0.7


@dataclass(frozen=True, slots=True)
class Judged:
    """One form's part in the choice."""

    form: str
    chosen: bool
    #: in words, why it is chosen, is not, or could not be fitted
    reason: str
    fitted: bool
    #: that a projection type has; None for interpolation
    n_parameters: int | None = None
    #: leaving one config out, of the measurements that every form could predict
    cv_rmse: float | None = None
    #: leaving one config out, within matrices, of all it could predict
    cv_r2: float | None = None
    cv_layer_rmse: float | None = None
    #: mean squared error above the best form's, and its standard error over the configs left out
    excess: float | None = None
    excess_error: float | None = None
    n_unpredictable: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, eq=False, slots=True)
class FormSelection:
    """Every form's fit and the one that is chosen."""

    fits: dict[str, ErrorFit]
    chosen: str
    #: the best parametric form, chosen or not; None where none could be fitted
    parametric: str | None
    #: True where the parametric forms fall short and interpolation takes their place
    fallback: bool
    judged: tuple[Judged, ...]

    @property
    def best(self) -> ErrorFit:
        return self.fits[self.chosen]


def fit_form(form: str, observations: Sequence[ErrorObservation], spectra: Spectra | None = None) -> ErrorFit:
    """Fit the named form, cross-validated.

    Raises:
        FitError: too little is measured for it.
        NonFiniteValues: an error is NaN, infinite or negative.
    """
    match form:
        case "log_linear":
            return fit_log_linear(observations)
        case "multiplicative":
            return fit_multiplicative(observations, spectra=spectra)
        case "additive":
            return fit_additive(observations)
        case "monotone":
            return fit_monotone(observations)
    raise ValueError(f"no form is called {form!r}: choose one of {', '.join(FORMS)}")


def select_form(
    observations: Iterable[ErrorObservation], *, spectra: Spectra | None = None, needed_r2: float = NEEDED_R2
) -> FormSelection:
    """Fit all forms and choose the one that predicts left-out configs best.

    The criterion is the root mean square of log(measured / predicted), leaving one config out, over the measurements
    that every fitted form could predict. A simpler form is taken where its mean squared error exceeds the best one's by
    no more than one standard error of that difference over the configs (Breiman et al. 1984, the 1-SE rule, paired).
    Where the best parametric form's cross-validated R² within matrices is not above ``needed_r2``, interpolation
    (``monotone``) is taken whatever the comparison says.

    Raises:
        FitError: no form can be fitted; the message says why for each.
        NonFiniteValues: an error is NaN, infinite or negative.
    """
    given = list(observations)
    fits: dict[str, ErrorFit] = {}
    failures: dict[str, str] = {}
    for form in FORMS:
        try:
            fits[form] = fit_form(form, given, spectra)
        except FitError as error:
            failures[form] = str(error)
    if not fits:
        raise FitError("; ".join(dict.fromkeys(failures.values())))
    compared = _Comparison.of(fits)
    parametric = compared.simplest([form for form in fits if form != "monotone"])
    r2 = None if parametric is None else _r2(fits[parametric])
    refused = "monotone" in fits and parametric is not None and not (r2 is not None and r2 > needed_r2)
    chosen = "monotone" if refused else compared.simplest(list(fits))
    assert chosen is not None  # some form is fitted
    judged = []
    for form in FORMS:
        if form in failures:
            judged.append(Judged(form, False, f"not fitted: {failures[form]}", False))
            continue
        if not refused:
            reason = compared.reason(form, chosen)
        elif form == chosen:
            reason = (
                f"NO-GO for the parametric model: {parametric}, the best of its forms, has "
                f"{'no R²' if r2 is None else f'R² {r2:.3f}'} on left-out configs within matrices, not above "
                f"{needed_r2:g}; interpolation takes its place"
            )
        else:
            reason = f"the parametric forms reach no R² above {needed_r2:g} on left-out configs"
        judged.append(_judged(fits[form], compared, form == chosen, reason))
    return FormSelection(fits, chosen, parametric, refused, tuple(judged))


def _judged(fit: ErrorFit, compared: _Comparison, chosen: bool, reason: str) -> Judged:
    excess, error = compared.excess(fit.form)
    return Judged(
        form=fit.form,
        chosen=chosen,
        reason=reason,
        fitted=True,
        n_parameters=fit.n_parameters,
        cv_rmse=compared.rmse(fit.form),
        cv_r2=_r2(fit),
        cv_layer_rmse=None if fit.layer_validation is None else fit.layer_validation.rmse_log,
        excess=excess,
        excess_error=error if error is not None and math.isfinite(error) else None,
        n_unpredictable=None if fit.cross_validation is None else fit.cross_validation.n_unpredictable,
    )


def _r2(fit: ErrorFit) -> float | None:
    """R² within matrices of configs that the fit has not seen, in sample where nothing could be left out."""
    validation = fit.cross_validation
    return validation.r2_log_within if validation is not None else fit.quality.overall.r2_log_within


@dataclass(frozen=True, eq=False, slots=True)
class _Comparison:
    """The forms' residuals on left-out configs, over what every validated form predicts."""

    #: form → (configs,) mean square
    squares: dict[str, FloatArray]
    #: (configs,) how many measurements each mean is of
    n: FloatArray

    @classmethod
    def of(cls, fits: dict[str, ErrorFit]) -> _Comparison:
        validated = {form: fit.cross_validation for form, fit in fits.items() if fit.cross_validation is not None}
        if not validated:
            return cls({}, np.zeros(0))
        common = np.logical_and.reduce([np.isfinite(v.residuals) for v in validated.values()])
        fold = next(iter(validated.values())).fold
        folds = [mask for k in range(int(fold.max()) + 1) if (mask := common & (fold == k)).any()]
        if not folds:
            return cls({}, np.zeros(0))
        squares = {form: np.array([(v.residuals[m] ** 2).mean() for m in folds]) for form, v in validated.items()}
        return cls(squares, np.array([m.sum() for m in folds], dtype=np.float64))

    def mean(self, form: str) -> float:
        return float((self.n * self.squares[form]).sum() / self.n.sum())

    def rmse(self, form: str) -> float | None:
        return math.sqrt(self.mean(form)) if form in self.squares else None

    def best(self, forms: Sequence[str]) -> str | None:
        """The form with the least error; None where none could be validated."""
        return min((form for form in forms if form in self.squares), key=self.mean, default=None)

    def excess(self, form: str, best: str | None = None) -> tuple[float | None, float | None]:
        """Mean squared error above the best form's, and its standard error over the configs."""
        best = best or self.best(list(self.squares))
        if best is None or form not in self.squares:
            return None, None
        apart = self.squares[form] - self.squares[best]
        mean, n = float((self.n * apart).sum() / self.n.sum()), len(apart)
        if n < 2:
            return mean, math.inf
        error = math.sqrt(float((self.n**2 * (apart - mean) ** 2).sum()) * n / (n - 1)) / float(self.n.sum())
        return mean, error

    def within(self, form: str, best: str | None) -> bool:
        """The form is not worse than the best by more than one standard error."""
        mean, error = self.excess(form, best)
        return mean is not None and error is not None and mean <= error

    def simplest(self, forms: Sequence[str]) -> str | None:
        """The simplest of these forms within one standard error of their best; of unvalidated ones the simplest."""
        best = self.best(forms)
        known = [form for form in FORMS if form in forms and (best is None or self.within(form, best))]
        return known[0] if known else best

    def reason(self, form: str, chosen: str) -> str:
        """Why a form is or is not chosen."""
        best, rmse = self.best(list(self.squares)), self.rmse(form)
        if best is None or rmse is None:
            said = "nothing could be left out to compare by"
            return f"{said}; the simplest form that could be fitted" if form == chosen else said
        against = f"{rmse:.3g} against {self.rmse(best):.3g} of {best}"
        if form == best:
            least = f"the least error on left-out configs ({rmse:.3g} in log)"
            return least if form == chosen else f"{least}, but {chosen} is simpler and within one standard error"
        if form == chosen:
            return f"within one standard error of the best on left-out configs ({against}), and simpler"
        if self.within(form, None):
            return f"within one standard error of the best on left-out configs ({against}), but not simpler"
        return f"worse on left-out configs ({against})"
