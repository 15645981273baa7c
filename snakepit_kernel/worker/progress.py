"""Progress bars of tqdm in a call: they are not printed, but tell the caller how far they are.

tqdm may be imported at any time, also by the tool itself, or not at all. So its classes are changed
the moment they exist. What is changed are methods: it does not matter who has imported the classes
before, or derives others from them. A bar of a cell, or one that writes to a file, is left alone.
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
from .imports import change_modules
from .output import CallOutput, output_of_call

Plain = bool | int | float | str

_OF_A_SCREEN = ("nrows", "ascii")
"""What tqdm finds out about the screen here, of which the caller's differs."""

_numbers = itertools.count(1)


def follow_bars() -> None:
    """Have the bars of calls followed in this process, from now on."""
    change_modules(_CHANGES)


class Report:
    """Stands in the place of a bar's file: takes no text, and tells the caller how far the bar is.

    Parameters
    ----------
    output
        Where the bar would have been printed.
    colour
        Colour of a bar whose class does not keep it.
    """

    encoding = "utf-8"

    def __init__(self, output: CallOutput, colour: str | None = None) -> None:
        self.is_last = False
        self._output = output
        self._call_id = output.call_id  # also when another call runs inside this one
        # Processes that a tool has forked count on from the same number.
        self._number = os.getpid() << 32 | next(_numbers)
        self._colour = colour

    def send(self, bar: Any) -> None:
        """Tell where a bar is now."""
        settings = _settings_of(bar)
        if self._colour:
            settings["colour"] = self._colour
        message = Progress(self._call_id, self._number, settings, self.is_last)
        self._output.send(message)

    def write(self, text: str) -> int:
        """Take no notice of what tqdm writes beside the bar: ends of lines, and blanks."""
        return len(text)

    def flush(self) -> None:
        """Do nothing."""


def _report_of(bar: Any) -> Report | None:
    """Return what a bar reports to; None for one that is printed."""
    file = bar.__dict__.get("fp")
    while "_wrapped" in getattr(file, "__dict__", ()):  # in tqdm's own wrappers
        file = file.__dict__["_wrapped"]
    if isinstance(file, Report):
        return file
    output = output_of_call(file)
    return None if output is None else _attach(bar, Report(output))


def _attach(bar: Any, report: Report) -> Report:
    bar.fp = report
    bar.sp = report.write  # tqdm's printer of the bar's text
    return report


def _settings_of(bar: Any) -> dict[str, Plain | None]:
    """Return how far a bar is and how it looks, as far as that differs from what tqdm does."""
    told = {name: value for name, value in bar.format_dict.items() if name not in _OF_A_SCREEN}
    if not isinstance(told.get("postfix"), str | None):
        told["bar_format"] = None  # it may look into the postfix, which travels as text
    if bar.ascii not in {True, False}:
        told["ascii"] = bar.ascii
    told["leave"] = bar.pos == 0 if bar.leave is None else bar.leave
    told["dynamic_ncols"] = bool(bar.dynamic_ncols) or None
    return {name: _plain(value) for name, value in told.items() if value is not None}


def _plain(value: Any) -> Plain:
    """Return a value as one that messages hold: numbers may be NumPy's, for example."""
    if isinstance(value, bool | str):
        return value if type(value) in {bool, str} else str(value)
    try:
        return int(value) if -(2**63) <= value < 2**63 and value == int(value) else float(value)
    except (TypeError, ValueError, ArithmeticError):
        return str(value)


# -- tqdm's classes --------------------------------------------------------------------------------


def _change_bars(module: ModuleType) -> None:
    """Change the methods of `tqdm.std.tqdm` that draw."""
    kind = module.tqdm
    display, refresh, close = kind.display, kind.refresh, kind.close

    @functools.wraps(display)
    def display_(bar: Any, *args: Any, **kwargs: Any) -> Any:
        report = _report_of(bar)
        if report is None:
            return display(bar, *args, **kwargs)
        report.send(bar)
        return True

    @functools.wraps(refresh)
    def refresh_(bar: Any, *args: Any, **kwargs: Any) -> Any:
        if bar.disable or _report_of(bar) is None:
            return refresh(bar, *args, **kwargs)
        # Without tqdm's lock, which an interrupt in the middle would leave locked; and nobody's
        # bar has to wait for the caller of another one.
        bar.display()
        return True

    @functools.wraps(close)
    def close_(bar: Any) -> None:
        report = None if getattr(bar, "disable", True) else _report_of(bar)
        if report is not None:
            report.is_last = True
        close(bar)  # draws a bar once more that has been drawn

    kind.display, kind.refresh, kind.close = display_, refresh_, close_


def _change_widgets(module: ModuleType) -> None:
    """Have `tqdm.notebook.tqdm` be a bar like others in a call, where no front end sees widgets."""
    kind = module.tqdm_notebook
    init = kind.__init__

    @functools.wraps(init)
    def init_(bar: Any, *args: Any, **kwargs: Any) -> None:
        output = output_of_call(sys.stderr)  # a widget has no file, whatever it was given
        if output is None or not kwargs.pop("display", True):  # whoever shows the widget needs it
            init(bar, *args, **kwargs)
            return
        kwargs |= {"disable": bool(kwargs.get("disable")), "gui": True}  # with no printer
        super(kind, bar).__init__(*args, **kwargs)
        bar.disp = _nothing
        if not bar.disable:
            bar.gui = False
            _attach(bar, Report(output, kwargs.get("colour")))
            if bar.delay <= 0:
                bar.refresh()

    kind.__init__ = init_
    for name in ("display", "close", "reset"):
        setattr(kind, name, _skipped_in_calls(kind, name))


def _skipped_in_calls(kind: Any, name: str) -> Callable[..., Any]:
    """Wrap a method of a class so that bars of calls have that of the class above."""
    method = getattr(kind, name)

    @functools.wraps(method)
    def wrapped(bar: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(bar.__dict__.get("fp"), Report):
            return getattr(super(kind, bar), name)(*args, **kwargs)
        return method(bar, *args, **kwargs)

    return wrapped


def _nothing(*_: Any, **__: Any) -> None:
    pass


_CHANGES = {"tqdm.std": _change_bars, "tqdm.notebook": _change_widgets}
