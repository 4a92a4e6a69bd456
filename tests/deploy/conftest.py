"""Models and texts for tests that run real workers."""

from __future__ import annotations

from tests.service_fixtures import deep_model, text_path, tiny_model

__all__ = ["deep_model", "text_path", "tiny_model"]
