"""tqdm progress bars of calls: sent to the caller as structured progress, instead of printed.

tqdm may be imported at any time, also by the tool itself, or not at all. So its classes are patched
when they are imported. Only methods are patched: classes that other code has imported before, or
derives from them, are covered. A bar of a cell, or one that writes to a file, is left alone.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..protocol.messages import Progress
from .imports import patch_modules
from .output import CallOutput, output_of_call

Plain = bool | int | float | str

_SCREEN_SETTINGS = ("nrows", "ascii")
"""Properties of the screen that tqdm detects here; the caller's screen differs."""

_numbers = itertools.count(1)


def patch_tqdm() -> None:
    """Patch tqdm in this process, so that the bars of calls send their progress."""
    patch_modules(_PATCHES)


class BarReporter:
    """Replacement of a bar's file, which discards text and sends the bar's progress.

    Parameters
    ----------
    output
        The stream that the bar would have been printed to.
    colour
        Colour of a bar whose class does not keep it.
    """

    encoding = "utf-8"

    def __init__(self, output: CallOutput, colour: str | None = None) -> None:
        self.is_last = False
        self._output = output
        self._call_id = output.call_id  # also when another call runs inside this one
        # Processes that a tool has forked continue the count from the same number.
        self._number = os.getpid() << 32 | next(_numbers)
        self._colour = colour

    def send(self, bar: Any) -> None:
        """Send the present state of a bar."""
        settings = _settings_of(bar)
        if self._colour:
            settings["colour"] = self._colour
        message = Progress(self._call_id, self._number, settings, self.is_last)
        self._output.send(message)

    def write(self, text: str) -> int:
        """Discard what tqdm writes around the bar: ends of lines, and blanks."""
        return len(text)

    def flush(self) -> None:
        """Do nothing."""


def _reporter_of(bar: Any) -> BarReporter | None:
    """Return the reporter of a bar; None for one that is printed."""
    file = bar.__dict__.get("fp")
    while "_wrapped" in getattr(file, "__dict__", ()):  # tqdm's own wrappers
        file = file.__dict__["_wrapped"]
    if isinstance(file, BarReporter):
        return file
    output = output_of_call(file)
    return None if output is None else _attach(bar, BarReporter(output))


def _attach(bar: Any, reporter: BarReporter) -> BarReporter:
    bar.fp = reporter
    bar.sp = reporter.write  # tqdm's printer of the bar's text
    return reporter


def _settings_of(bar: Any) -> dict[str, Plain | None]:
    """Return a bar's state and its settings that differ from tqdm's defaults."""
    settings = {
        name: value for name, value in bar.format_dict.items() if name not in _SCREEN_SETTINGS
    }
    if not isinstance(settings.get("postfix"), str | None):
        settings["bar_format"] = None  # it may use fields of the postfix, which is sent as text
    if bar.ascii not in {True, False}:
        settings["ascii"] = bar.ascii
    settings["leave"] = bar.pos == 0 if bar.leave is None else bar.leave
    settings["dynamic_ncols"] = bool(bar.dynamic_ncols) or None
    return {name: _plain(value) for name, value in settings.items() if value is not None}


def _plain(value: Any) -> Plain:
    """Convert a value to a type that messages can hold: numbers may be NumPy's, for example."""
    if isinstance(value, bool | str):
        return value if type(value) in {bool, str} else str(value)
    try:
        return int(value) if -(2**63) <= value < 2**63 and value == int(value) else float(value)
    except (TypeError, ValueError, ArithmeticError):
        return str(value)


# -- tqdm's classes --------------------------------------------------------------------------------


def _patch_bars(module: ModuleType) -> None:
    """Patch the methods of `tqdm.std.tqdm` that draw."""
    kind = module.tqdm
    display, refresh, close = kind.display, kind.refresh, kind.close

    @functools.wraps(display)
    def display_(bar: Any, *args: Any, **kwargs: Any) -> Any:
        reporter = _reporter_of(bar)
        if reporter is None:
            return display(bar, *args, **kwargs)
        reporter.send(bar)
        return True

    @functools.wraps(refresh)
    def refresh_(bar: Any, *args: Any, **kwargs: Any) -> Any:
        if bar.disable or _reporter_of(bar) is None:
            return refresh(bar, *args, **kwargs)
        # Without tqdm's lock, which an interrupt in the middle would leave locked; and no bar has
        # to wait for the caller of another one.
        bar.display()
        return True

    @functools.wraps(close)
    def close_(bar: Any) -> None:
        reporter = None if getattr(bar, "disable", True) else _reporter_of(bar)
        if reporter is not None:
            reporter.is_last = True
        close(bar)  # redraws a bar that has been drawn

    kind.display, kind.refresh, kind.close = display_, refresh_, close_


def _patch_widgets(module: ModuleType) -> None:
    """Make `tqdm.notebook.tqdm` an ordinary bar in calls, where no front end shows widgets."""
    kind = module.tqdm_notebook
    init = kind.__init__

    @functools.wraps(init)
    def init_(bar: Any, *args: Any, **kwargs: Any) -> None:
        output = output_of_call(sys.stderr)  # a widget ignores the file it was given
        if output is None or not kwargs.pop("display", True):  # the tool displays the widget itself
            init(bar, *args, **kwargs)
            return
        kwargs |= {"disable": bool(kwargs.get("disable")), "gui": True}  # with no printer
        super(kind, bar).__init__(*args, **kwargs)
        bar.disp = _nothing
        if not bar.disable:
            bar.gui = False
            _attach(bar, BarReporter(output, kwargs.get("colour")))
            if bar.delay <= 0:
                bar.refresh()

    kind.__init__ = init_
    for name in ("display", "close", "reset"):
        setattr(kind, name, _bypassed_in_calls(kind, name))


def _bypassed_in_calls(kind: Any, name: str) -> Callable[..., Any]:
    """Wrap a method of a class so that bars of calls use the base class's method."""
    method = getattr(kind, name)

    @functools.wraps(method)
    def wrapped(bar: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(bar.__dict__.get("fp"), BarReporter):
            return getattr(super(kind, bar), name)(*args, **kwargs)
        return method(bar, *args, **kwargs)

    return wrapped


def _nothing(*_: Any, **__: Any) -> None:
    pass


_PATCHES = {"tqdm.std": _patch_bars, "tqdm.notebook": _patch_widgets}
