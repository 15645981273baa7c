"""Old names of modules, under which pickles of earlier versions look for what they hold."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

MOVED: Final = {
    "snakepit_kernel.attempts": "snakepit_kernel.call_details",
    "snakepit_kernel.pool.observing.timeline": "snakepit_kernel.pool.monitoring.timeline",
    "snakepit_kernel.pool.recovery.policies": "snakepit_kernel.pool.policies",
    "snakepit_kernel.pool.workers.limits": "snakepit_kernel.pool.resources.limits",
    "snakepit_kernel.processes.keeping": "snakepit_kernel.processes.keep",
    "snakepit_kernel.processes.report": "snakepit_kernel.processes.end_report",
    "snakepit_kernel.sessions.portable": "snakepit_kernel.sessions.exports",
}
"""The present name of each module that users' pickles may refer to."""

_FOLDERS: Final = {old.rpartition(".")[0] for old in MOVED}


class MovedModules:
    """Finds modules by their old names, when nothing else does: one of `sys.meta_path`.

    It derives from no class of `importlib.abc`: to import that takes longer than this package.
    """

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Return how a module is loaded that has moved; None for every other one."""
        if name in MOVED or name in _FOLDERS:
            loader: Any = self
            return ModuleSpec(name, loader, is_package=name in _FOLDERS)
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """Let the import system make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Give the module all that the present one has."""
        if module.__name__ in MOVED:
            present = importlib.import_module(MOVED[module.__name__])
            module.__getattr__ = partial(getattr, present)  # type: ignore[method-assign]


def find_moved_modules() -> None:
    """Let old names be imported in this process."""
    sys.meta_path.append(MovedModules())
