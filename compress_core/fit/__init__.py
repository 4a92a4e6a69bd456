"""Models of the error E_i(b, r), with their evidence. Needs numpy and scipy only."""

from compress_core.fit.error_fit import ErrorFit, Parameter, PhysicalCheck
from compress_core.fit.monotone import MonotoneFit, fit_monotone
from compress_core.fit.observation import ErrorObservation
from compress_core.fit.parametric import ParametricFit, fit_additive, fit_log_linear
from compress_core.fit.profiles import ErrorProfiles, error_profiles
from compress_core.fit.quality import CrossValidation, FitQuality, GroupQuality

__all__ = [
    "CrossValidation",
    "ErrorFit",
    "ErrorObservation",
    "ErrorProfiles",
    "FitQuality",
    "GroupQuality",
    "MonotoneFit",
    "Parameter",
    "ParametricFit",
    "PhysicalCheck",
    "error_profiles",
    "fit_additive",
    "fit_log_linear",
    "fit_monotone",
]
