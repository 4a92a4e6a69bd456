"""Register the quantizer with transformers as soon as transformers is there, and not before. Torch-free.

The server imports this package for its byte counts and has no torch. So nothing is imported here: where transformers'
registry is loaded already, the quantizer registers at once; otherwise a finder waits for the registry's import and
registers right after it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_REGISTRY = "transformers.quantizers.auto"
_QUANTIZER = "compress_core.pack.quantizer"


class _RegisteringLoader(Loader):
    """Executes the registry with its own loader, then imports the quantizer."""

    def __init__(self, loader: Loader, finder: _RegistryFinder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        sys.meta_path.remove(self._finder)
        import_module(_QUANTIZER)


class _RegistryFinder(MetaPathFinder):
    """Answers for the registry alone: its ordinary spec with a loader that registers afterwards."""

    def __init__(self) -> None:
        self._asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _REGISTRY or self._asking:
            return None
        self._asking = True  # the other finders know where the registry is
        try:
            spec = find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, self)
        return spec


def register_with_transformers() -> None:
    """Make ``from_pretrained`` know packed models, now or when transformers gets imported."""
    if _REGISTRY in sys.modules:
        import_module(_QUANTIZER)
    else:
        sys.meta_path.insert(0, _RegistryFinder())
