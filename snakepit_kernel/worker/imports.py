"""Patching of modules as soon as they are imported, whenever that is."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

Patch = Callable[[ModuleType], None]


def patch_modules(patches: Mapping[str, Patch]) -> None:
    """Patch modules, by name: imported ones now, the others when they are imported."""
    for name, patch in patches.items():
        if name in sys.modules:
            patch(sys.modules[name])
    sys.meta_path.insert(0, _Finder(patches))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that are to be patched, and no others."""

    def __init__(self, patches: Mapping[str, Patch]) -> None:
        self._patches = patches

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module as usual; arrange that it is patched when it has been loaded."""
        patch = self._patches.get(name)
        spec = None if patch is None else PathFinder.find_spec(name, path, target)
        if patch is not None and spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, patch)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads a module with another loader, and patches it."""

    def __init__(self, loader: importlib.abc.Loader, patch: Patch) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as usual."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, and patch it."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader  # it knows the source
        self._loader.exec_module(module)
        self._patch(module)
