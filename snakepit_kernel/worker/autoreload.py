"""Modules that were edited are loaded anew, in place, as ``%autoreload`` does."""

from __future__ import annotations

import sys
import sysconfig


class Autoreload:
    """Looks, before each piece of work, which modules of the user have changed on disk.

    Python's own modules and installed packages are not looked at.
    """

    def __init__(self) -> None:
        from IPython.extensions.autoreload import ModuleReloader

        self._reloader = ModuleReloader()
        names = ("stdlib", "platstdlib", "purelib", "platlib")
        self._installed = tuple({f"{sysconfig.get_path(name)}/" for name in names})
        self._seen = 0
        self.note_imported()

    def note_imported(self) -> None:
        """Note the age of modules that were imported meanwhile: an edit is known by that."""
        if len(sys.modules) == self._seen:
            return
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if not file or file.startswith(self._installed):
                self._reloader.mark_module_skipped(name)
        self._reloader.check(check_all=True, do_reload=False)
        self._seen = len(sys.modules)

    def reload_changed(self) -> None:
        """Load modules anew that have changed."""
        self._reloader.check(check_all=True)
