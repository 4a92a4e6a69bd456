"""The version of the numerics: bumped by hand whenever a result changes, guarded by a golden test."""

NUMERICS_VERSION = 3
