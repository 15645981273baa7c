"""The `tool` decorator and the `Adapter` class, with which users write tools."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, overload

from ..ids import check_name
from ..validation import FOREVER
from .context import SessionContext

_ATTRIBUTE = "__snakepit_tool__"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOptions:
    """The options that a function was given by `tool`.

    Attributes
    ----------
    name
        Name of the tool; the function's by default.
    description
        One or two sentences; the function's docstring by default.
    idempotent
        Whether calling it twice does no harm.
    timeout
        Seconds that a call may take when the caller gives no timeout.
    """

    name: str | None = None
    description: str | None = None
    idempotent: bool = False
    timeout: float | None = None


@overload
def tool(function: F, /) -> F: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    idempotent: bool = False,
    timeout: float | None = None,
) -> Callable[[F], F]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    idempotent: bool = False,
    timeout: float | None = None,
) -> Any:
    """Mark a method of an adapter, or a function of a module, as a tool.

    Use it bare, or with options.

    Parameters
    ----------
    name
        1 to 64 characters of ``[A-Za-z0-9_.-]``, first a letter or a digit. Default: the
        function's name.
    description
        One or two sentences for people and models. Default: the docstring.
    idempotent
        Whether calling it twice does no harm.
    timeout
        Seconds that a call may take when the caller gives no timeout.

    Raises
    ------
    TypeError
        The decorated object is not a function.
    ValueError
        The name or the timeout is not valid.

    Examples
    --------
    >>> @tool(description="Multiply by two.", idempotent=True)
    ... def double(x: int) -> int:
    ...     return 2 * x
    """
    if name is not None:
        check_name("tool", name)
    if timeout is not None and not timeout > 0:
        msg = f"a tool's timeout must be positive seconds, not {timeout!r}"
        raise ValueError(msg)
    timeout = None if timeout is not None and timeout >= FOREVER else timeout
    options = ToolOptions(
        name=name, description=description, idempotent=idempotent, timeout=timeout
    )

    def mark(target: F) -> F:
        if not inspect.isroutine(target):
            msg = f"@tool decorates functions, not {type(target).__name__} {target!r}"
            raise TypeError(msg)
        check_name("tool", name or target.__name__)
        setattr(target, _ATTRIBUTE, options)
        return target

    return mark if function is None else mark(function)


def options_of(function: object) -> ToolOptions | None:
    """Return the options of a function that `tool` marked, else None."""
    options = getattr(function, _ATTRIBUTE, None)
    return options if isinstance(options, ToolOptions) else None


class Adapter:
    """Base of a class whose ``@tool`` methods are a pool's tools.

    Each call gets a new instance: ``initialize()``, the tool, then ``cleanup()``, exactly once,
    also after an error or an interrupt. Each of the three may be a coroutine function.

    Attributes
    ----------
    context
        The session that the call belongs to.
    thread_safe
        Whether its tools may run in several threads at the same time, as in the profile
        ``"thread"`` of a pool. A module declares it by a variable of that name.
    """

    context: SessionContext
    thread_safe: ClassVar[bool] = False

    def initialize(self) -> Any:
        """Prepare for one call."""

    def cleanup(self) -> Any:
        """Clean up what `initialize` prepared."""
