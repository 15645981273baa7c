"""The tools of a pool as methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from ..errors import ToolNotFound
from ..protocol.messages import ToolInfo

if TYPE_CHECKING:
    from .caller import Caller


class Tools:
    """The tools of a pool as methods.

    Parameters
    ----------
    caller
        A pool or a session.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            info = self._caller._find_tool(name)  # noqa: SLF001 - one idea in two classes
        except ToolNotFound as error:
            raise AttributeError(str(error)) from error

        validator = self._caller._definitions.validator  # noqa: SLF001

        run = self._caller._stream if info.streams else self._caller._call  # noqa: SLF001

        def call(*args: Any, **kwargs: Any) -> Any:
            return run(name, args, kwargs)

        call.__name__ = call.__qualname__ = name
        call.__doc__ = info.description
        call.__signature__ = validator.signature(info)  # type: ignore[attr-defined]
        return call

    def __getitem__(self, name: str) -> ToolInfo:
        return self._caller._find_tool(name)  # noqa: SLF001

    def __iter__(self) -> Any:
        return iter(self._caller.tool_names())

    def __len__(self) -> int:
        return len(self._caller.tool_names())

    def __dir__(self) -> list[str]:
        return [name for name in self._caller.tool_names() if name.isidentifier()]

    def _ipython_key_completions_(self) -> list[str]:
        return self._caller.tool_names()

    def __repr__(self) -> str:
        names = self._caller.tool_names()
        lines = [f"{name}{self[name].signature}" for name in names]
        return "\n".join(lines) or "no tools"


class ToolsOfCaller:
    """The tools as methods: ``pool.tools.price(item="tea")``. Tab completes their names.

    A property would do, but IPython completes nothing behind one: it does not run its code.
    """

    @overload
    def __get__(self, caller: None, owner: type) -> ToolsOfCaller: ...

    @overload
    def __get__(self, caller: Caller, owner: type) -> Tools: ...

    def __get__(self, caller: Caller | None, owner: type) -> ToolsOfCaller | Tools:
        return self if caller is None else Tools(caller)
