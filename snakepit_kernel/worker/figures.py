"""Matplotlib figures of each call, separate from those of other calls, and closed at its end.

pyplot keeps one list of open figures for the process. A call would draw on the figures that another
one has left open, and show and close them; calls in several threads do that to each other. So this
list is replaced by one list per call, and one for the cells.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from ..tools.context import SessionContext, call_of_here
from .imports import patch_modules

BACKEND = "module://matplotlib_inline.backend_inline"
"""Matplotlib's backend in notebooks."""

_INLINE = "matplotlib_inline.backend_inline"

figures_of_calls: WeakKeyDictionary[SessionContext, OrderedDict[Any, Any]] = WeakKeyDictionary()
"""The open figures of each call that has made any."""


def isolate_figures() -> None:
    """Give each call of this process its own figures, from now on."""
    if not os.environ.get("MPLBACKEND"):
        # Matplotlib reads this when it is imported, which may be before there is a shell.
        os.environ["MPLBACKEND"] = BACKEND
        if "matplotlib" in sys.modules:  # preloaded
            _choose_backend(sys.modules["matplotlib"])
    patch_modules({"matplotlib._pylab_helpers": _patch_list})


def finish_figures() -> None:
    """Show the figures that the call has left open, and close them."""
    call = call_of_here()
    if not figures_of_calls or call is None or not (figures := figures_of_calls.get(call)):
        return
    backend, pyplot = sys.modules.get(_INLINE), sys.modules["matplotlib.pyplot"]
    try:
        if backend is not None and pyplot.get_backend() in {"inline", BACKEND}:
            backend.show(True)
    finally:
        if figures:
            pyplot.close("all")


def _choose_backend(matplotlib: Any) -> None:
    """Select Matplotlib's notebook backend, unless another one was chosen."""
    with contextlib.suppress(TypeError):  # before 3.10 get_backend() always chooses one
        if matplotlib.get_backend(auto_select=False) is None:
            matplotlib.rcParams["backend"] = BACKEND


class Figures(MutableMapping[Any, Any]):
    """The open figures of the current call, as pyplot's dictionary of managers.

    Parameters
    ----------
    of_cells
        The figures that belong to no call.
    """

    def __init__(self, of_cells: OrderedDict[Any, Any]) -> None:
        self._of_cells = of_cells

    @property
    def _own(self) -> OrderedDict[Any, Any]:
        call = call_of_here()
        if call is None:
            return self._of_cells
        own = figures_of_calls.get(call)
        if own is None:
            own = figures_of_calls[call] = OrderedDict()
        return own

    def __getitem__(self, number: Any) -> Any:
        return self._own[number]

    def __setitem__(self, number: Any, manager: Any) -> None:
        self._own[number] = manager

    def __delitem__(self, number: Any) -> None:
        del self._own[number]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._own)

    def __reversed__(self) -> Iterator[Any]:
        numbers: Iterator[Any] = reversed(self._own)
        return numbers

    def __len__(self) -> int:
        return len(self._own)

    def keys(self) -> Any:
        """As a dictionary's, which can be reversed."""
        return self._own.keys()

    def values(self) -> Any:
        """As a dictionary's, which can be reversed."""
        return self._own.values()

    def items(self) -> Any:
        """As a dictionary's, which can be reversed."""
        return self._own.items()

    def move_to_end(self, number: Any, last: bool = True) -> None:
        """As an OrderedDict's."""
        self._own.move_to_end(number, last)


def _patch_list(module: ModuleType) -> None:
    module.Gcf.figs = Figures(module.Gcf.figs)
