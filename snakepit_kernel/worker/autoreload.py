"""Reloading of edited modules, in place, as ``%autoreload`` does."""

from __future__ import annotations

import sys
import sysconfig


class Autoreload:
    """Reloads, before each call or cell, the user's modules that have changed on disk.

    Python's own modules and installed packages are skipped.
    """

    def __init__(self) -> None:
        from IPython.extensions.autoreload import ModuleReloader

        self._reloader = ModuleReloader()
        names = ("stdlib", "platstdlib", "purelib", "platlib")
        self._installed = tuple({f"{sysconfig.get_path(name)}/" for name in names})
        self._seen = 0
        self.note_imported()

    def note_imported(self) -> None:
        """Record the modification time of newly imported modules, to recognise later edits."""
        if len(sys.modules) == self._seen:
            return
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if not file or file.startswith(self._installed):
                self._reloader.mark_module_skipped(name)
        self._reloader.check(check_all=True, do_reload=False)
        self._seen = len(sys.modules)

    def reload_changed(self) -> None:
        """Reload the modules that have changed."""
        self._reloader.check(check_all=True)
