"""Questions of a worker's code: where ``input()`` can ask somebody, and where it cannot."""

from __future__ import annotations

import builtins
import getpass
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from IPython.core.error import StdinNotImplementedError

from ..tools.context import call_of_here

_IN_CALLS = (
    "works in the cells of %%snakepit, where somebody can answer, not in functions and tools: pass "
    "what they need as arguments"
)
_IN_CELLS = (
    "cannot ask anybody here: it works in cells of %%snakepit without --all and --background, in a "
    "notebook that somebody sits at, and in pool.run(…, on_input=…)"
)


def explain_missing_input() -> None:
    """Say in the error of ``input()`` and ``getpass()`` outside of cells where they work.

    While a cell runs, ipykernel has functions of its own in their places.
    """
    builtins.input = _explaining(builtins.input)
    getpass.getpass = _explaining(getpass.getpass)


def _explaining(function: Callable[..., str]) -> Callable[..., str]:
    empty = sys.stdin

    @wraps(function)
    def ask(*args: Any, **kwargs: Any) -> str:
        if sys.stdin is not empty:  # code has given itself something to read
            return function(*args, **kwargs)
        name = function.__name__.removeprefix("unix_")
        msg = f"{name}() {_IN_CALLS}"
        raise EOFError(msg)

    return ask


def check_input(name: str, *, is_allowed: bool) -> None:
    """Raise an error unless the code that asks can get an answer.

    Parameters
    ----------
    name
        The function that asks.
    is_allowed
        Whether the cell's front end answers.

    Raises
    ------
    EOFError
        A call asks, while a cell runs.
    StdinNotImplementedError
        It does not.
    """
    if call_of_here() is not None:
        msg = f"{name}() {_IN_CALLS}"
        raise EOFError(msg)
    if not is_allowed:
        msg = f"{name}() {_IN_CELLS}"
        raise StdinNotImplementedError(msg)
