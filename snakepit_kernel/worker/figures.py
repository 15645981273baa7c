"""Figures of Matplotlib: each call has its own, and leaves none behind.

pyplot keeps one list of open figures for the process. A call would draw on what another one has
left open, and show it, and close it; calls in several threads do that to each other. So this list
is a list for each call, and one for the cells.
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
from .imports import change_modules

BACKEND = "module://matplotlib_inline.backend_inline"
"""Matplotlib's backend in notebooks."""

_INLINE = "matplotlib_inline.backend_inline"

of_calls: WeakKeyDictionary[SessionContext, OrderedDict[Any, Any]] = WeakKeyDictionary()
"""The figures of calls that have had some."""


def keep_figures_apart() -> None:
    """Give each call of this process figures of its own, from now on."""
    if not os.environ.get("MPLBACKEND"):
        # Matplotlib looks there when it is imported, which may be before there is a shell.
        os.environ["MPLBACKEND"] = BACKEND
        if "matplotlib" in sys.modules:  # preloaded
            _choose_backend(sys.modules["matplotlib"])
    change_modules({"matplotlib._pylab_helpers": _change_list})


def finish_figures() -> None:
    """Show the figures that the call has left open, and close them."""
    call = call_of_here()
    if not of_calls or call is None or not (figures := of_calls.get(call)):
        return
    backend, pyplot = sys.modules.get(_INLINE), sys.modules["matplotlib.pyplot"]
    try:
        if backend is not None and pyplot.get_backend() in {"inline", BACKEND}:
            backend.show(True)
    finally:
        if figures:
            pyplot.close("all")


def _choose_backend(matplotlib: Any) -> None:
    """Have Matplotlib use the backend of notebooks, unless another one was chosen."""
    with contextlib.suppress(TypeError):  # before 3.10 it cannot say so without choosing one
        if matplotlib.get_backend(auto_select=False) is None:
            matplotlib.rcParams["backend"] = BACKEND


class Figures(MutableMapping[Any, Any]):
    """The open figures of whoever asks, as pyplot keeps them.

    Parameters
    ----------
    of_cells
        Those that belong to no call.
    """

    def __init__(self, of_cells: OrderedDict[Any, Any]) -> None:
        self._of_cells = of_cells

    @property
    def _own(self) -> OrderedDict[Any, Any]:
        call = call_of_here()
        if call is None:
            return self._of_cells
        own = of_calls.get(call)
        if own is None:
            own = of_calls[call] = OrderedDict()
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


def _change_list(module: ModuleType) -> None:
    module.Gcf.figs = Figures(module.Gcf.figs)
