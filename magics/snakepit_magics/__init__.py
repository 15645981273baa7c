"""The notebook surface: the magics ``%snakepit`` and ``%%snakepit``."""

from __future__ import annotations

from IPython.core.interactiveshell import InteractiveShell

from .magics import SnakepitMagics

__all__ = ["SnakepitMagics", "load", "load_ipython_extension", "unload", "unload_ipython_extension"]


def load(shell: InteractiveShell) -> None:
    """Add the magics to a shell; a second time changes nothing."""
    if SnakepitMagics.of(shell) is None:
        magics = SnakepitMagics(shell)
        shell.register_magics(magics)
        magics.register_completer()
        magics.register_help()


def unload(shell: InteractiveShell) -> None:
    """Remove the magics from a shell, and end the pools that they opened."""
    magics = SnakepitMagics.of(shell)
    if magics is not None:
        magics.unregister()


load_ipython_extension = load
unload_ipython_extension = unload
