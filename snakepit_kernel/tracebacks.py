"""Tracebacks that show the code of the user: the frames of this package are left out.

A public function that catches an exception, calls `hide_own_frames` and raises it again by a bare
``raise`` leaves no frame in the traceback, not even its own: Python adds a frame when an exception
enters it, and a bare ``raise`` adds none. So every traceback ends in the user's code, wherever it
is shown, and post-mortem debuggers begin there. A call that succeeds costs nothing.
"""

from __future__ import annotations

import dis
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import CodeType, FunctionType, TracebackType
from typing import Any, Final, TypeVar, cast

from .validation import suggest

FULL_VARIABLE: Final = "SNAKEPIT_FULL_TRACEBACKS"
"""Environment variable: if it is set, and not 0, tracebacks keep the frames of this package."""

OWN = frozenset({"snakepit_kernel", "snakepit_magics"})
"""Packages whose frames are left out."""

FRAMEWORK = OWN | {
    *("ipykernel", "IPython", "jupyter_client", "zmq", "tornado", "traitlets"),
    *("asyncio", "concurrent", "threading", "selectors", "contextlib", "functools"),
    *("pickle", "cloudpickle"),
}
"""Packages and modules that this package calls, or that call it: between it and the user's code."""

_RAISING = frozenset({dis.opmap["RAISE_VARARGS"], dis.opmap["RERAISE"]})

F = TypeVar("F", bound="Callable[..., Any] | type")


def hide_own_frames(error: BaseException, *, is_expected: bool = False) -> None:
    """Remove the frames of this package from the traceback of an exception, and of its causes.

    An error that no code raised on purpose is a fault of this package, and keeps all its frames.

    Parameters
    ----------
    error
        The exception.
    is_expected
        Whether it cannot be such a fault.
    """
    if shows_all_frames() or (not is_expected and _is_unexpected(error)):
        return
    for each in _chain(error):
        each.__traceback__ = _of_users(each.__traceback__)


def without_framework(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of the framework above the user's code."""
    while trace is not None and _package(trace) in FRAMEWORK:
        trace = trace.tb_next
    return trace


def shows_all_frames() -> bool:
    """Whether tracebacks are to keep the frames of this package."""
    return os.environ.get(FULL_VARIABLE, "0") not in {"", "0"}


def hides_own_frames(public: F) -> F:
    """Call `hide_own_frames` for what a function raises, or each public method of a class.

    The error of an option that the function does not have names the one that may be meant.

    Functions that call `hide_own_frames` themselves are left as they are: those that are called so
    often that a call more would count, and asynchronous generators, which do not nest well.
    """
    if isinstance(public, type):
        for name, method in list(vars(public).items()):
            if isinstance(method, FunctionType) and _is_public(name) and _needs_it(method):
                setattr(public, name, _hiding(method))
        return public
    return cast("F", _hiding(public))


def _hiding(function: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def acall(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            except BaseException as error:
                _suggest_option(function, error)
                hide_own_frames(error)
                raise

        return acall

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def iterate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from function(*args, **kwargs)
            except BaseException as error:
                _suggest_option(function, error)
                hide_own_frames(error)
                raise

        return iterate

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            _suggest_option(function, error)
            hide_own_frames(error)
            raise

    return call


def _suggest_option(function: Callable[..., Any], error: BaseException) -> None:
    """Have the error of an option that a function does not have name the one that may be meant."""
    trace = error.__traceback__
    if type(error) is not TypeError or trace is None or trace.tb_next is not None:
        return  # the function was called, and has raised it
    unknown = _UNKNOWN_OPTION.search(str(error))
    if unknown is not None:
        parameters = inspect.signature(function).parameters.values()
        known = [
            each.name
            for each in parameters
            if each.kind in _NAMED and each.name not in {"self", "cls"}
        ]
        error.args = (f"{_NO_OPTION}{unknown[1]!r}{suggest(unknown[1], known)}",)


_UNKNOWN_OPTION = re.compile(r"got an unexpected keyword argument '(\w+)'")
_NO_OPTION = "there is no option "
_NAMED = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


_SPECIAL = frozenset(
    {
        *("__enter__", "__exit__", "__getattr__", "__setattr__", "__delattr__"),
        *("__getitem__", "__setitem__", "__delitem__", "__contains__", "__len__"),
        *("__iter__", "__next__"),
    }
)


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in _SPECIAL


def _needs_it(method: FunctionType) -> bool:
    hides_itself = hide_own_frames.__name__ in method.__code__.co_names
    return not hides_itself and not inspect.isasyncgenfunction(method)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Iterate over an exception and those that are shown with it."""
    seen: set[int] = set()
    shown: BaseException | None = error
    while shown is not None and id(shown) not in seen:
        seen.add(id(shown))
        yield shown
        follows_context = shown.__cause__ is None and not shown.__suppress_context__
        shown = shown.__context__ if follows_context else shown.__cause__


def _is_unexpected(error: BaseException) -> bool:
    """Whether a fault of this package is shown by an exception: it was not raised on purpose."""
    trace = error.__traceback__
    if not isinstance(error, Exception) or isinstance(error, MemoryError | RecursionError):
        return False  # an interrupt, for example, may come anywhere
    if isinstance(error, TypeError) and str(error).startswith(_NO_OPTION):
        return False  # of options that the public function has passed on
    if isinstance(error, AssertionError):
        return trace is not None and _package(_last(trace)) in OWN
    if trace is None or trace.tb_next is None:
        return False  # the arguments of the public function
    last = _last(trace)
    return _package(last) in FRAMEWORK and not _raises(last.tb_frame.f_code, last.tb_lasti)


def _raises(code: CodeType, index: int) -> bool:
    """Whether an instruction raises an exception on purpose."""
    return 0 <= index < len(code.co_code) and code.co_code[index] in _RAISING


def _last(trace: TracebackType) -> TracebackType:
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _of_users(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of this package, and of what only it has called."""
    if trace is not None and _package(trace) in OWN:
        trace = without_framework(trace)
    kept: list[TracebackType] = []
    is_below_own = False
    while trace is not None:
        package = _package(trace)
        if package in OWN:
            is_below_own = True
        elif not (is_below_own and package in FRAMEWORK):
            kept.append(trace)
            is_below_own = False
        trace = trace.tb_next
    if not kept:
        return None
    for outer, inner in pairwise(kept):
        outer.tb_next = inner
    kept[-1].tb_next = None
    return kept[0]


def _package(trace: TracebackType) -> str:
    name = trace.tb_frame.f_globals.get("__name__")
    if isinstance(name, str):
        return name.partition(".")[0]
    # Of a module compiled by Cython, which has no names in Python 3.14, but a relative path.
    return trace.tb_frame.f_code.co_filename.partition("/")[0]
