"""Registry of a worker's tools: those of an adapter, and functions of the notebook."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InvalidArguments, ToolNotFound, suggest
from ..processes import children
from ..protocol.messages import ToolInfo
from .adapter import Adapter, ToolOptions, options_of
from .arguments import Arguments
from .context import SessionContext


class AdapterError(ValueError):
    """An adapter cannot be used; the text says why, and what a valid one is."""


class Tool:
    """One tool: a function with its options, or a method of an adapter's class.

    Parameters
    ----------
    function
        The function.
    options
        Those given to ``@tool``.
    owner
        The adapter's class when the function is a method.
    """

    def __init__(
        self, function: Callable[..., Any], options: ToolOptions, owner: type | None = None
    ) -> None:
        self.name = options.name or function.__name__
        self._function = function
        self._owner = owner
        self._options = options
        self._arguments = Arguments.of(function, skip_first=owner is not None)
        self._initialize = _own_hook(owner, "initialize")
        self._cleanup = _own_hook(owner, "cleanup")
        yields_async = inspect.isasyncgenfunction(function)
        self.streams = yields_async or inspect.isgeneratorfunction(function)
        parts = (function, self._initialize, self._cleanup)
        self.is_async = yields_async or any(map(inspect.iscoroutinefunction, parts))

    def info(self) -> ToolInfo:
        """Describe the tool to callers."""
        return ToolInfo(
            name=self.name,
            description=self._options.description or inspect.getdoc(self._function) or "",
            signature=str(self._arguments.signature),
            schema=self._arguments.schema(),
            checks=self._arguments.portable(),
            idempotent=self._options.idempotent,
            timeout=self._options.timeout,
            streams=self.streams,
        )

    def bind(
        self, context: SessionContext | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Any]:
        """Check the arguments; return a function that runs the call.

        It returns the value, an awaitable when ``is_async``, a generator when ``streams``, or an
        asynchronous one when both.

        Raises
        ------
        InvalidArguments
            They do not fit; nothing has run.
        """
        args, kwargs, problems = self._arguments.bind(args, kwargs)
        if problems:
            raise InvalidArguments(self.name, problems)
        if self._owner is None:
            return functools.partial(self._function, *args, **kwargs)
        run: Callable[..., Any]
        if self.streams:
            run = self._stream_async if self.is_async else self._stream
        else:
            run = self._run_async if self.is_async else self._run
        return functools.partial(run, context, args, kwargs)

    # The life cycle of an adapter's instance: initialize, the tool, cleanup.

    def _run(
        self, context: SessionContext | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with self._instance(context) as instance:
            return self._function(instance, *args, **kwargs)

    def _stream(
        self, context: SessionContext | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[Any]:
        with self._instance(context) as instance:
            yield from self._function(instance, *args, **kwargs)

    async def _run_async(
        self, context: SessionContext | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        async with self._instance_async(context) as instance:
            return await _awaited(self._function(instance, *args, **kwargs))

    async def _stream_async(
        self, context: SessionContext | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncIterator[Any]:
        async with self._instance_async(context) as instance:
            chunks = self._function(instance, *args, **kwargs)
            if isinstance(chunks, AsyncIterator):
                async with contextlib.aclosing(chunks):  # type: ignore[type-var]
                    async for chunk in chunks:
                        yield chunk
            else:  # a plain generator between hooks that await
                with contextlib.closing(chunks):
                    for chunk in chunks:
                        yield chunk

    @contextlib.contextmanager
    def _instance(self, context: SessionContext | None) -> Iterator[Any]:
        instance = self._new_instance(context)
        try:
            if self._initialize is not None:
                self._initialize(instance)
            yield instance
        except BaseException as error:
            if self._cleanup is not None and not children.is_child:
                try:
                    self._cleanup(instance)
                except Exception as second:  # noqa: BLE001 - the first error is the one to report
                    error.add_note(f"cleanup() failed as well: {second!r}")
            raise
        if self._cleanup is not None and not children.is_child:
            self._cleanup(instance)

    @contextlib.asynccontextmanager
    async def _instance_async(self, context: SessionContext | None) -> AsyncIterator[Any]:
        instance = self._new_instance(context)
        try:
            if self._initialize is not None:
                await _awaited(self._initialize(instance))
            yield instance
        except BaseException as error:
            if self._cleanup is not None and not children.is_child:
                try:
                    await _awaited(self._cleanup(instance))
                except Exception as second:  # noqa: BLE001 - the first error is the one to report
                    error.add_note(f"cleanup() failed as well: {second!r}")
            raise
        if self._cleanup is not None and not children.is_child:
            await _awaited(self._cleanup(instance))

    def _new_instance(self, context: SessionContext | None) -> Any:
        assert self._owner is not None
        instance = self._owner()
        instance.context = context
        return instance


class ToolRegistry:
    """The tools of one worker, by name."""

    def __init__(self) -> None:
        self._tools: dict[str, Tool] = {}
        self._broken: dict[str, BaseException] = {}  # functions that could not be restored

    def load(self, adapter: object, *, has_threads: bool = False) -> None:
        """Add the tools of an adapter.

        Parameters
        ----------
        adapter
            ``"module:Class"``, ``"module"``, a class or a module; None adds nothing.
        has_threads
            Whether they are to be run in several threads at the same time.

        Raises
        ------
        AdapterError
            It is none of these, has no tools, or is not thread-safe.
        Exception
            Whatever importing it raises.
        """
        if adapter is None:
            return
        target = import_adapter(adapter) if isinstance(adapter, str) else adapter
        if has_threads and getattr(target, "thread_safe", False) is not True:
            msg = (
                f"adapter {name_of(target)!r} does not declare thread_safe = True, which the "
                "profile 'thread' asks for; use profile='process', or declare it"
            )
            raise AdapterError(msg)
        found = list(_tools_of(target))
        if not found:
            msg = (
                f"adapter {name_of(target)!r} has no tools; mark its "
                f"{'methods' if isinstance(target, type) else 'functions'} with @tool"
            )
            raise AdapterError(msg)
        for tool in found:
            self._tools[tool.name] = tool

    def define(self, name: str, function: Callable[..., Any]) -> None:
        """Add a function of the notebook, or replace it."""
        self._tools[name] = Tool(function, options_of(function) or ToolOptions(name=name))
        self._broken.pop(name, None)

    def mark_broken(self, name: str, error: BaseException) -> None:
        """Record why a function of the notebook could not be added; `get` raises that error."""
        self._broken[name] = error

    def get(self, name: str) -> Tool:
        """Return a tool.

        Raises
        ------
        ToolNotFound
            There is none of that name.
        """
        if name in self._broken:
            raise self._broken[name]
        tool = self._tools.get(name)
        if tool is None:
            raise ToolNotFound(name, sorted(self._tools))
        return tool

    def has(self, name: str) -> bool:
        """Whether there is a tool of a name."""
        return name in self._tools

    def infos(self) -> list[ToolInfo]:
        """Describe all tools, in the order of their definition."""
        return [tool.info() for tool in self._tools.values()]


def describe(function: Callable[..., Any]) -> ToolInfo:
    """Describe a function of the notebook as a tool.

    Raises
    ------
    AdapterError
        It cannot be a tool.
    """
    return Tool(function, options_of(function) or ToolOptions()).info()


def import_adapter(path: str) -> object:
    """Import ``"module:Class"`` or ``"module"``.

    Raises
    ------
    AdapterError
        The text has another form, or the module has no such class.
    ImportError
        There is no such module.
    """
    module_name, separator, attribute = path.partition(":")
    if not module_name or (separator and not attribute):
        msg = f"adapter {path!r} must be 'module:Class' or 'module'"
        raise AdapterError(msg)
    if module_name not in sys.modules:
        _drop_stale_bytecode(module_name)
    module = importlib.import_module(module_name)
    if not separator:
        return module
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        classes = [name for name, item in vars(module).items() if isinstance(item, type)]
        msg = f"module {module_name!r} has no {attribute!r}{suggest(attribute, classes)}"
        raise AdapterError(msg) from None


def _drop_stale_bytecode(name: str) -> None:
    """Remove the bytecode of a module that was changed after it was compiled.

    Python compares the source's time in whole seconds, and its size: it does not notice a change
    within the same second that keeps the size.
    """
    try:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or spec.cached is None:
            return
        compiled = Path(spec.cached)
        if Path(spec.origin).stat().st_mtime_ns > compiled.stat().st_mtime_ns:
            compiled.unlink()
    except (ImportError, OSError, ValueError):
        return  # there is none, or it belongs to another user; the import itself raises the error


def _tools_of(target: object) -> Iterator[Tool]:
    if isinstance(target, type):
        for name in dir(target):
            function = inspect.getattr_static(target, name)
            options = options_of(function)
            if options is not None:
                yield Tool(function, options, owner=target)
    elif isinstance(target, types.ModuleType):
        for function in vars(target).values():
            options = options_of(function)
            if options is not None and callable(function):
                yield Tool(function, options)
    else:
        msg = f"an adapter is a class or a module, not {type(target).__name__} {target!r}"
        raise AdapterError(msg)


def _own_hook(owner: type | None, name: str) -> Callable[..., Any] | None:
    """Return a class's own ``initialize`` or ``cleanup``; the base's do nothing and cost a call."""
    hook = getattr(owner, name, None)
    return None if hook is getattr(Adapter, name) else hook


def name_of(adapter: object) -> str:
    """Return an adapter's name as it would be given in text: ``module:Class`` or ``module``."""
    if isinstance(adapter, str):
        return adapter
    module = getattr(adapter, "__module__", None)
    name = str(getattr(adapter, "__qualname__", getattr(adapter, "__name__", repr(adapter))))
    return f"{module}:{name}" if module else name


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
