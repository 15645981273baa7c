"""Changing modules the moment they exist: some may be imported at any time, or not at all."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

Change = Callable[[ModuleType], None]


def change_modules(changes: Mapping[str, Change]) -> None:
    """Change modules, by their names: those that are here now, others when they are imported."""
    for name, change in changes.items():
        if name in sys.modules:
            change(sys.modules[name])
    sys.meta_path.insert(0, _Finder(changes))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that are to be changed, and nothing else."""

    def __init__(self, changes: Mapping[str, Change]) -> None:
        self._changes = changes

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module as usual; have it changed when it has been loaded."""
        change = self._changes.get(name)
        spec = None if change is None else PathFinder.find_spec(name, path, target)
        if change is not None and spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, change)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads a module as another loader does, and changes it."""

    def __init__(self, loader: importlib.abc.Loader, change: Change) -> None:
        self._loader = loader
        self._change = change

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as usual."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, and change it."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader  # which others ask for the source
        self._loader.exec_module(module)
        self._change(module)
