"""Models of the error E_i(b, r), with their evidence. Needs numpy and scipy only."""

from compress_core.fit.error_fit import ErrorFit, Parameter, PhysicalCheck
from compress_core.fit.monotone import MonotoneFit, fit_monotone
from compress_core.fit.observation import ErrorObservation
from compress_core.fit.parametric import ParametricFit, fit_additive, fit_log_linear, fit_multiplicative
from compress_core.fit.profiles import ErrorProfiles, error_profiles
from compress_core.fit.quality import CrossValidation, FitQuality, GroupQuality
from compress_core.fit.selection import FORMS, FormSelection, Judged, fit_form, select_form
from compress_core.fit.spectrum import Spectra, read_spectrum

__all__ = [
    "FORMS",
    "CrossValidation",
    "ErrorFit",
    "ErrorObservation",
    "ErrorProfiles",
    "FitQuality",
    "FormSelection",
    "GroupQuality",
    "Judged",
    "MonotoneFit",
    "Parameter",
    "ParametricFit",
    "PhysicalCheck",
    "Spectra",
    "error_profiles",
    "fit_additive",
    "fit_form",
    "fit_log_linear",
    "fit_monotone",
    "fit_multiplicative",
    "read_spectrum",
    "select_form",
]
